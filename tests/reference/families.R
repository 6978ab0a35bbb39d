# Makes families.json:
#   PYTHONPATH=tests/models python -m glmm.families data.csv
#   Rscript tests/reference/families.R data.csv > tests/reference/families.json
# Numbers of glmmTMB and of ordinal::clmm on data that glmm.families simulates, and of
# clmm on the wine data of the package ordinal (Randall 1989).
suppressPackageStartupMessages({library(glmmTMB); library(ordinal)})
data <- read.csv(commandArgs(TRUE)[1], stringsAsFactors = TRUE)
data$level <- factor(data$level, ordered = TRUE)

num <- function(x) {
  text <- ifelse(is.na(x), "null", sprintf("%.12g", as.numeric(x)))
  paste0("[", paste(text, collapse = ", "), "]")
}
entry <- function(name, loglik, coef, se, sd, extra = numeric()) {
  sprintf(
    '  "%s": {"loglik": %.12g, "coef": %s, "se": %s, "sd": %s, "extra": %s}',
    name, loglik, num(coef), num(se), num(sd), num(extra)
  )
}
tmb <- function(name, ..., first = NULL) {
  # Links that are not defined everywhere need to begin where they are.
  start <- if (is.null(first)) NULL else list(beta = c(first, 0))
  fit <- suppressWarnings(glmmTMB(..., data = data, start = start))
  V <- vcov(fit)$cond
  sd <- sapply(VarCorr(fit)$cond, function(v) attr(v, "stddev"))
  entry(name, logLik(fit), fixef(fit)$cond, sqrt(diag(V)), sd,
        c(sigma(fit), family_params(fit)))
}
clm <- function(name, formula, data, ...) {
  control <- clmm.control(gradTol = 1e-8)
  fit <- suppressWarnings(clmm(formula, data = data, Hess = TRUE, control = control, ...))
  s <- coef(summary(fit))
  entry(name, fit$logLik, s[, 1], s[, 2], sapply(fit$ST, function(m) m[1, 1]))
}
out <- c(
  tmb("tweedie", tweedie ~ x + (1 | g) + (1 | h), family = tweedie(link = "log")),
  tmb("tweedie, dispersion", tweedie ~ x + (1 | g), dispformula = ~x,
      family = tweedie(link = "log")),
  tmb("ztp", above ~ x + (1 | g), family = truncated_poisson(link = "log")),
  tmb("ztnb2", above ~ x + (1 | g) + (1 | h), family = truncated_nbinom2(link = "log")),
  tmb("ztnb1", above ~ x + (1 | g), family = truncated_nbinom1(link = "log")),
  tmb("poisson sqrt", counts ~ x + (1 | g), family = poisson(link = "sqrt"),
      first = 1.4),
  tmb("nb2 sqrt", counts ~ x + (1 | g), family = nbinom2(link = "sqrt"),
      first = 1.4),
  tmb("gamma log", positive ~ x + (1 | g) + (1 | h), family = Gamma(link = "log")),
  tmb("gamma inverse", positive ~ x + (1 | h), family = Gamma(link = "inverse"),
      first = 0.5),
  tmb("gamma identity", positive ~ x + (1 | h), family = Gamma(link = "identity"),
      first = 2),
  tmb("gaussian log", positive ~ x + (1 | g), family = gaussian(link = "log")),
  tmb("binomial cloglog", yes ~ x + (1 | g) + (1 | h), family = binomial(link = "cloglog")),
  tmb("binomial probit", yes ~ x + (1 | g) + (1 | h), family = binomial(link = "probit")),
  clm("ordinal logit", level ~ x + (1 | g) + (1 | h), data, link = "logit"),
  clm("ordinal probit", level ~ x + (1 | g) + (1 | h), data, link = "probit"),
  clm("ordinal cloglog", level ~ x + (1 | g), data, link = "loglog"),
  clm("ordinal loglog", level ~ x + (1 | g), data, link = "cloglog"),
  clm("wine", rating ~ temp + contact + (1 | judge), wine),
  clm("wine, nAGQ 9", rating ~ temp + contact + (1 | judge), wine, nAGQ = 9),
  tmb("t", heavy ~ x + (1 | g), family = t_family(link = "identity"))
)
cat("{\n", paste(out, collapse = ",\n"), "\n}\n", sep = "")
