# Makes nonlinear.json: Rscript tests/reference/nonlinear.R > tests/reference/nonlinear.json
# Numbers of R's nls, nlme and lme4::nlmer on data that R ships; no data.
suppressPackageStartupMessages({library(nlme); library(lme4, exclude = "lmList")})

tight <- nlmeControl(
  tolerance = 1e-9, pnlsTol = 1e-9, maxIter = 500, pnlsMaxIter = 50, msMaxIter = 500,
  msTol = 1e-12, returnObject = TRUE
)

num <- function(x) paste0("[", paste(sprintf("%.12g", as.numeric(x)), collapse = ", "), "]")
txt <- function(x) paste0("[", paste0('"', x, '"', collapse = ", "), "]")
fields <- function(...) {
  parts <- list(...)
  paste0("{", paste0('"', names(parts), '": ', unlist(parts), collapse = ", "), "}")
}
entry <- function(name, ...) {
  value <- tryCatch(eval(substitute(list(...)), parent.frame()), error = function(e) {
    message(name, ": ", conditionMessage(e)); NULL
  })
  if (is.null(value)) return(NULL)
  sprintf('  "%s": %s', name, do.call(fields, value))
}

covariance <- function(fit) {
  # Covariances of every level's effects, outermost factor first.
  rs <- fit$modelStruct$reStruct
  lapply(rev(seq_along(rs)), function(j) as.matrix(rs[[j]]) * fit$sigma^2)
}
describe_nlme <- function(fit) {
  V <- covariance(fit)
  list(
    llf = sprintf("%.12g", as.numeric(logLik(fit))), method = sprintf('"%s"', fit$method),
    names = txt(names(fixef(fit))), fixef = num(fixef(fit)),
    se = num(sqrt(diag(fit$varFix))), sigma = sprintf("%.12g", fit$sigma),
    sd = num(unlist(lapply(V, function(v) sqrt(diag(v))))),
    cor = num(unlist(lapply(V, function(v) {
      s <- sqrt(diag(v)); r <- v / outer(s, s); r[lower.tri(r)]
    })))
  )
}
nlme_case <- function(name, ...) {
  fit <- tryCatch(nlme(..., control = tight), error = function(e) {
    message(name, ": ", conditionMessage(e)); NULL
  })
  if (is.null(fit)) return(NULL)
  sprintf('  "%s": %s', name, do.call(fields, describe_nlme(fit)))
}
nlmer_case <- function(name, formula, data, start) {
  # nlmer reads the formula off its call: it must stand there in full.
  fit <- do.call(nlmer, list(formula, data, start = start, control = nlmerControl(
    optimizer = "bobyqa", tolPwrss = 1e-12,
    optCtrl = list(rhobeg = 2e-3, rhoend = 1e-9, maxfun = 1e5)
  )))
  vc <- as.data.frame(VarCorr(fit))
  sprintf('  "%s": %s', name, fields(
    llf = sprintf("%.12g", as.numeric(logLik(fit))), names = txt(names(fixef(fit))),
    fixef = num(fixef(fit)), sigma = sprintf("%.12g", sigma(fit)),
    sd = num(vc[is.na(vc$var2) & vc$grp != "Residual", "sdcor"]),
    cor = num(vc[!is.na(vc$var2), "sdcor"])
  ))
}
# nlmer's deviance is rough (its modes are found to about 1e-4 of the deviance), so that
# no optimiser finds its optimum to 1e-3 standard errors. This is the same deviance with
# modes to rounding, minimised with restarts, and its Hessian.
laplace_case <- function(name, y, f, data, start, varying, full, group, theta) {
  k <- length(varying); levels <- split(seq_along(y), factor(data[[group]], ordered = FALSE))
  modes <- lapply(levels, function(rows) rep(0, k))
  relative <- function(theta) {
    L <- diag(0, k)
    if (full) L[lower.tri(L, diag = TRUE)] <- theta else diag(L) <- theta
    L
  }
  deviance <- function(par) {
    L <- relative(par[seq_along(theta)]); beta <- par[-seq_along(theta)]
    total <- 0; logdet <- 0
    for (g in seq_along(levels)) {
      rows <- levels[[g]]; u <- modes[[g]]
      at <- function(u) {
        phi <- matrix(beta, length(rows), length(beta), byrow = TRUE)
        colnames(phi) <- names(start)
        phi[, varying] <- sweep(phi[, varying, drop = FALSE], 2, as.numeric(L %*% u), "+")
        mu <- f(data[rows, ], phi)
        list(r = y[rows] - as.numeric(mu),
             M = attr(mu, "gradient")[, match(varying, names(start)), drop = FALSE] %*% L)
      }
      now <- at(u)
      for (step in 1:500) {
        move <- solve(crossprod(now$M) + diag(k), crossprod(now$M, now$r) - u)
        size <- 1; before <- sum(now$r^2) + sum(u^2)
        repeat {
          trial <- u + size * as.numeric(move); after <- at(trial)
          if (sum(after$r^2) + sum(trial^2) <= before * (1 + 1e-15) || size < 1e-6) break
          size <- size / 2
        }
        u <- trial; now <- after
        if (max(abs(move)) < 1e-11) break
      }
      modes[[g]] <<- u
      total <- total + sum(now$r^2) + sum(u^2)
      logdet <- logdet + as.numeric(determinant(crossprod(now$M) + diag(k))$modulus)
    }
    logdet + length(y) * (1 + log(2 * pi * total / length(y)))
  }
  at <- c(theta, start); scale <- pmax(abs(at), 0.1) / 20
  for (round in 1:2) {
    at <- optim(at, deviance, method = "BFGS", control = list(
      parscale = scale, ndeps = rep(1e-3, length(at)), reltol = 1e-16, maxit = 1000
    ))$par
    scale <- 1 / sqrt(diag(optimHess(at, deviance, control = list(
      parscale = scale, ndeps = rep(1e-2, length(at))
    ))))
  }
  H <- optimHess(at, deviance, control = list(
    parscale = scale, ndeps = rep(3e-3, length(at))
  ))
  V <- solve(H / 2)
  sprintf('  "%s": %s', name, fields(
    llf = sprintf("%.12g", -deviance(at) / 2), names = txt(names(start)),
    fixef = num(at[-seq_along(theta)]), se = num(sqrt(diag(V))[-seq_along(theta)]),
    root = num(relative(at[seq_along(theta)]))
  ))
}
# nlme's own REML keeps the ratios of variances of ML (3.1-162: fixed effects, and every
# standard deviation over sigma, are ML's to nine digits). This is the alternation with
# lme's REML in its place, to a fixed point.
reml_case <- function(name, y, f, data, start, varying, pd, group) {
  p <- length(start); b <- matrix(0, nrow(data), p)
  colnames(b) <- names(start); beta <- start; g <- data[[group]]
  for (step in 1:200) {
    phi <- sweep(b, 2, beta, "+")
    mu <- f(data, phi); D <- attr(mu, "gradient")
    frame <- data.frame(w = y - as.numeric(mu) + rowSums(D * phi), g = factor(g, ordered = FALSE))
    for (j in 1:p) frame[[names(start)[j]]] <- D[, j]
    fixed <- as.formula(paste("w ~ 0 +", paste(names(start), collapse = " + ")))
    random <- pd(as.formula(paste("~ 0 +", paste(varying, collapse = " + "))))
    fit <- lme(fixed, frame, random = list(g = random), method = "REML",
               control = lmeControl(msTol = 1e-14, tolerance = 1e-12, msMaxIter = 500))
    moved <- max(abs((fixef(fit) - beta) / sqrt(diag(vcov(fit)))))
    beta <- fixef(fit)
    b[, varying] <- as.matrix(ranef(fit))[as.character(frame$g), varying, drop = FALSE]
    if (moved < 1e-9) break
  }
  sprintf('  "%s": %s', name, do.call(fields, c(describe_nlme(fit), steps = step)))
}
nls_case <- function(name, formula, data) {
  near <- nls(formula, data)
  fit <- nls(formula, data, start = coef(near), control = nls.control(
    tol = 1e-8, minFactor = 1e-12, maxiter = 500, warnOnly = TRUE
  ))
  sprintf('  "%s": %s', name, fields(
    names = txt(names(coef(fit))), coef = num(coef(fit)),
    se = num(sqrt(diag(vcov(fit)))), sigma = sprintf("%.12g", sigma(fit)),
    llf = sprintf("%.12g", as.numeric(logLik(fit)))
  ))
}
show_part <- function(name, ...) {
  cat(sprintf('"%s": {\n%s\n}', name, paste(c(...), collapse = ",\n")))
}

oran <- c(Asym = 191.05, xmid = 722.56, scal = 344.16)
theo <- c(lKe = -2.43, lKa = 0.45, lCl = -3.21)
indo <- c(A1 = 2.83, lrc1 = 0.77, A2 = 0.46, lrc2 = -1.35)
soy <- c(Asym = 19.2, xmid = 55, scal = 8.4)
Soybean$Time <- as.numeric(Soybean$Time)
cat("{\n")
cat(sprintf(
  '"_meta": {"made": "%s", "R": "%s", "nlme": "%s", "lme4": "%s", "script": "nonlinear.R"},\n',
  Sys.Date(), getRversion(), packageVersion("nlme"), packageVersion("lme4")
))
lob <- c(Asym = 103, R0 = -8.5, lrc = -3.3)
both <- function(name, ...) c(
  nlme_case(paste0(name, "_ML"), ..., method = "ML"),
  nlme_case(paste0(name, "_REML"), ..., method = "REML")
)
show_part("nlme",
  both("orange", circumference ~ SSlogis(age, Asym, xmid, scal), data = Orange,
       fixed = Asym + xmid + scal ~ 1, random = Asym ~ 1 | Tree, start = oran),
  both("loblolly", height ~ SSasymp(age, Asym, R0, lrc), data = Loblolly,
       fixed = Asym + R0 + lrc ~ 1, random = Asym ~ 1, start = lob),
  both("theoph", conc ~ SSfol(Dose, Time, lKe, lKa, lCl), data = Theoph,
       fixed = lKe + lKa + lCl ~ 1, random = pdDiag(lKa + lCl ~ 1), start = theo),
  both("theoph_correlated", conc ~ SSfol(Dose, Time, lKe, lKa, lCl), data = Theoph,
       fixed = lKe + lKa + lCl ~ 1, random = lKa + lCl ~ 1 | Subject, start = theo),
  both("theoph_weight", conc ~ SSfol(Dose, Time, lKe, lKa, lCl), data = Theoph,
       fixed = list(lKe + lKa ~ 1, lCl ~ Wt), random = pdDiag(lKa + lCl ~ 1),
       start = c(-2.43, 0.45, -3.2, 0)),
  both("indometh", conc ~ SSbiexp(time, A1, lrc1, A2, lrc2), data = Indometh,
       fixed = A1 + lrc1 + A2 + lrc2 ~ 1, random = pdDiag(A1 + lrc1 + A2 ~ 1),
       groups = ~ Subject, start = indo),
  both("soybean", weight ~ SSlogis(Time, Asym, xmid, scal), data = Soybean,
       fixed = Asym + xmid + scal ~ 1, random = Asym + xmid ~ 1 | Plot, start = soy),
  both("soybean_covariates", weight ~ SSlogis(Time, Asym, xmid, scal), data = Soybean,
       fixed = list(Asym ~ factor(Year, ordered = FALSE) + Variety,
                    xmid ~ factor(Year, ordered = FALSE), scal ~ 1),
       random = Asym ~ 1 | Plot, start = c(17, 0, 0, 2, 52, 0, 0, 7.5)),
  both("dnase", density ~ SSlogis(log(conc), Asym, xmid, scal), data = DNase,
       fixed = Asym + xmid + scal ~ 1, random = Asym + xmid ~ 1 | Run,
       start = c(Asym = 2.4, xmid = 1.5, scal = 1.05)),
  both("wafer", current ~ A + S * voltage + B * cos(w * voltage + pi / 4),
       data = Wafer, fixed = A + S + B + w ~ 1,
       random = list(Wafer = S ~ 1, Site = A ~ 1),
       start = c(A = -4.3, S = 6, B = -0.1, w = 4.5679)),
  nlme_case("soybean_power_ML", weight ~ SSlogis(Time, Asym, xmid, scal), data = Soybean,
       fixed = Asym + xmid + scal ~ 1, random = Asym ~ 1 | Plot, start = soy,
       weights = varPower(), method = "ML")
)
cat(",\n")
orange_curve <- function(d, p) {
  Asym <- p[, 1]; xmid <- p[, 2]; scal <- p[, 3]
  SSlogis(d$age, Asym, xmid, scal)  # Names, or there is no gradient.
}
theoph_curve <- function(d, p) {
  lKe <- p[, 1]; lKa <- p[, 2]; lCl <- p[, 3]
  SSfol(d$Dose, d$Time, lKe, lKa, lCl)
}
dnase_curve <- function(d, p) {
  Asym <- p[, 1]; xmid <- p[, 2]; scal <- p[, 3]
  SSlogis(log(d$conc), Asym, xmid, scal)
}
show_part("reml",
  reml_case("orange", Orange$circumference, orange_curve, as.data.frame(Orange), oran,
            "Asym", pdSymm, "Tree"),
  reml_case("theoph", Theoph$conc, theoph_curve, as.data.frame(Theoph), theo,
            c("lKa", "lCl"), pdDiag, "Subject")
)
cat(",\n")
show_part("laplace",
  laplace_case("orange", Orange$circumference, orange_curve, as.data.frame(Orange), oran,
               "Asym", TRUE, "Tree", 4),
  laplace_case("orange_two", Orange$circumference, orange_curve, as.data.frame(Orange),
               oran, c("Asym", "xmid"), FALSE, "Tree", c(4, 2.7)),
  laplace_case("theoph", Theoph$conc, theoph_curve, as.data.frame(Theoph), theo,
               c("lKa", "lCl"), FALSE, "Subject", c(0.9, 0.24)),
  laplace_case("dnase", DNase$density, dnase_curve, as.data.frame(DNase),
               c(Asym = 2.4858, xmid = 1.5126, scal = 1.097), c("Asym", "xmid"), TRUE,
               "Run", c(6.52, 3.628, 2.23))
)
cat(",\n")
show_part("nlmer",
  nlmer_case("orange", circumference ~ SSlogis(age, Asym, xmid, scal) ~ Asym | Tree,
             Orange, oran),
  nlmer_case("orange_two",
             circumference ~ SSlogis(age, Asym, xmid, scal) ~ (Asym | Tree) + (xmid | Tree),
             Orange, oran),
  nlmer_case("dnase", density ~ SSlogis(log(conc), Asym, xmid, scal) ~ (Asym + xmid | Run),
             DNase, c(Asym = 2.4, xmid = 1.5, scal = 1.05)),
  nlmer_case("theoph",
             conc ~ SSfol(Dose, Time, lKe, lKa, lCl) ~ (lKa | Subject) + (lCl | Subject),
             Theoph, theo),
  nlmer_case("loblolly", height ~ SSasymp(age, Asym, R0, lrc) ~ Asym | Seed, Loblolly, lob)
)
cat(",\n")
Chick.1 <- as.data.frame(ChickWeight[ChickWeight$Chick == 1, ])
Chick.6 <- as.data.frame(subset(ChickWeight, Chick == 6 & Time > 0))
Lob.329 <- as.data.frame(Loblolly[Loblolly$Seed == "329", ])
DNase.1 <- as.data.frame(subset(DNase, Run == 1))
Indo.1 <- as.data.frame(Indometh[Indometh$Subject == 1, ])
Theoph.1 <- as.data.frame(Theoph[Theoph$Subject == 1, ])
PurTrt <- Puromycin[Puromycin$state == "treated", ]
show_part("nls",
  nls_case("SSlogis", density ~ SSlogis(log(conc), Asym, xmid, scal), DNase.1),
  nls_case("SSfpl", weight ~ SSfpl(Time, A, B, xmid, scal), Chick.1),
  nls_case("SSasymp", height ~ SSasymp(age, Asym, R0, lrc), Lob.329),
  nls_case("SSasympOrig", height ~ SSasympOrig(age, Asym, lrc), Lob.329),
  nls_case("SSasympOff", height ~ SSasympOff(age, Asym, lrc, c0), Lob.329),
  nls_case("SSbiexp", conc ~ SSbiexp(time, A1, lrc1, A2, lrc2), Indo.1),
  nls_case("SSgompertz", density ~ SSgompertz(log(conc), Asym, b2, b3), DNase.1),
  nls_case("SSmicmen", rate ~ SSmicmen(conc, Vm, K), PurTrt),
  nls_case("SSweibull", weight ~ SSweibull(Time, Asym, Drop, lrc, pwr), Chick.6),
  nls_case("SSfol", conc ~ SSfol(Dose, Time, lKe, lKa, lCl), Theoph.1)
)
cat("\n}\n")
