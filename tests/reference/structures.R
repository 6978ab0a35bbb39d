# Structured covariances by glmmTMB, residual covariances by nlme, on data of their
# packages: writes structures.json beside this file.  Rscript structures.R
suppressMessages({library(nlme); library(glmmTMB); library(jsonlite)})
out <- list(versions = list(R = paste(R.version$major, R.version$minor, sep = "."),
                            nlme = as.character(packageVersion("nlme")),
                            glmmTMB = as.character(packageVersion("glmmTMB"))),
            glmmTMB = list(), nlme = list())

O <- as.data.frame(Orthodont)
O$Subject <- factor(as.character(O$Subject)); O$f <- factor(O$age)
O$t <- numFactor(O$age)
E <- MASS::epil; E$subject <- factor(E$subject); E$f <- factor(E$period)
W <- as.data.frame(Wheat2); W$one <- factor(1)
W$pos <- numFactor(W$latitude, W$longitude)
W$variety <- factor(as.character(W$variety))

tmb <- function(name, ...) {
  m <- suppressWarnings(glmmTMB(...))
  s <- summary(m)$coefficients$cond
  out$glmmTMB[[name]] <<- list(
    logLik = as.numeric(logLik(m)), coef = unname(s[, 1]), se = unname(s[, 2]),
    sd = unname(attr(VarCorr(m)$cond[[1]], "stddev")),
    cor = unname(attr(VarCorr(m)$cond[[1]], "correlation")[1, ]), sigma = sigma(m))
}
M <- as.data.frame(Machines); M$Worker <- factor(as.character(M$Worker))
tmb("cs", score ~ Machine + cs(0 + Machine | Worker), M)
tmb("toep", score ~ Machine + toep(0 + Machine | Worker), M)
tmb("diag", score ~ Machine + diag(0 + Machine | Worker), M)
tmb("ar1", distance ~ age + ar1(0 + f | Subject) , O)
tmb("ou", distance ~ age + ou(0 + t | Subject), O)
tmb("ar1 poisson", y ~ lbase + trt + ar1(0 + f | subject), E, family = poisson)
tmb("cs poisson", y ~ lbase + trt + cs(0 + f | subject), E, family = poisson)
tmb("exp", yield ~ 1 + exp(0 + pos | one), W)

mixed <- function(name, ...) {
  control <- lmeControl(msTol = 1e-12, tolerance = 1e-12, msMaxIter = 500,
                        maxIter = 500, niterEM = 50)
  for (method in c("ML", "REML")) {
    m <- lme(..., method = method, control = control)
    s <- m$modelStruct
    # What vcov() of a fit by maximum likelihood lacks: the factor n / (n - p) is only
    # in summary(), and left out here too.
    out$nlme[[paste(name, method)]] <<- list(
      logLik = as.numeric(logLik(m)), sigma = m$sigma, coef = unname(fixef(m)),
      se = unname(sqrt(diag(vcov(m)))),
      residuals = unname(c(coef(s$corStruct, unconstrained = FALSE),
                           coef(s$varStruct, unconstrained = FALSE))),
      sd = as.numeric(VarCorr(m)[, "StdDev"]),
      normalized = unname(head(as.numeric(resid(m, type = "normalized")), 6)))
  }
}
mixed("ovary ar1", follicles ~ sin(2 * pi * Time) + cos(2 * pi * Time), Ovary,
      ~ 1 | Mare, correlation = corAR1(form = ~ 1 | Mare))
mixed("ovary car1", follicles ~ sin(2 * pi * Time) + cos(2 * pi * Time), Ovary,
      ~ 1 | Mare, correlation = corCAR1(form = ~ Time | Mare))
mixed("orthodont ident", distance ~ age * Sex, Orthodont, ~ 1 | Subject,
      weights = varIdent(form = ~ 1 | Sex))
mixed("orthodont power", distance ~ age * Sex, Orthodont, ~ 1 | Subject,
      weights = varPower(form = ~ age))
mixed("orthodont exp", distance ~ age * Sex, Orthodont, ~ 1 | Subject,
      weights = varExp(form = ~ age))
mixed("orthodont both", distance ~ age * Sex, Orthodont, ~ 1 | Subject,
      correlation = corAR1(form = ~ 1 | Subject), weights = varIdent(form = ~ 1 | Sex))
mixed("bodyweight", weight ~ Time * Diet, BodyWeight, ~ 1 | Rat,
      correlation = corCAR1(form = ~ Time | Rat), weights = varPower(form = ~ Time))
mixed("bodyweight cs", weight ~ Time * Diet, BodyWeight, ~ 0 + Time | Rat,
      correlation = corCompSymm(form = ~ 1 | Rat))

write(toJSON(out, digits = 12, auto_unbox = TRUE, pretty = TRUE), "structures.json")
