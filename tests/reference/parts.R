# Random effects of the mean and of the dispersion, by TMB: writes parts.json.
# glmmTMB has them from version 1.1.11 on; this is its model written out.
#   Rscript parts.R
library(TMB)
library(jsonlite)

template <- "
#include <TMB.hpp>
template<class Type> Type objective_function<Type>::operator() () {
  DATA_VECTOR(y); DATA_MATRIX(X); DATA_MATRIX(D); DATA_IVECTOR(g); DATA_INTEGER(nb);
  PARAMETER_VECTOR(beta); PARAMETER_VECTOR(delta); PARAMETER_VECTOR(logsd);
  PARAMETER_VECTOR(b); PARAMETER_VECTOR(c);
  Type out = -dnorm(b, Type(0), exp(logsd(0)), true).sum();
  out -= dnorm(c, Type(0), exp(logsd(1)), true).sum();
  vector<Type> mean = X * beta, disp = D * delta;
  for (int i = 0; i < y.size(); i++) {
    Type e = mean(i) + b(g(i)), d = disp(i) + c(g(i));
    // log sigma of a normal response, log alpha of a negative binomial one
    if (nb) out -= dnbinom_robust(y(i), e, 2 * e + d, true);
    else out -= dnorm(y(i), e, exp(d), true);
  }
  return out;
}"

folder <- tempdir()
source_file <- file.path(folder, "parts.cpp")
writeLines(template, source_file)
compile(source_file, flags = "-O1")
dyn.load(dynlib(file.path(folder, "parts")))

fit <- function(y, X, D, group, nb, beta) {
  g <- as.integer(factor(group)) - 1L
  m <- max(g) + 1
  start <- list(beta = beta, delta = rep(0, ncol(D)), logsd = c(0, -1),
                b = rep(0, m), c = rep(0, m))
  f <- MakeADFun(list(y = y, X = X, D = D, g = g, nb = nb), start,
                 random = c("b", "c"), DLL = "parts", silent = TRUE)
  f$env$tracepar <- FALSE
  f$env$inner.control <- list(maxit = 1000, tol10 = 0, tol = 1e-12)
  found <- nlminb(f$par, f$fn, f$gr, control = list(
    eval.max = 2000, iter.max = 2000, rel.tol = 1e-15, x.tol = 1e-12))
  H <- optimHess(found$par, f$fn, f$gr,
                 control = list(ndeps = rep(1e-4, length(found$par))))
  f$fn(found$par)
  effects <- f$env$parList(found$par, f$env$last.par)
  list(objective = 2 * found$objective, par = unname(found$par),
       se = unname(sqrt(diag(solve(H)))), gradient = max(abs(f$gr(found$par))),
       mean_effects = effects$b[1:5], dispersion_effects = effects$c[1:5])
}

data(sleepstudy, package = "lme4")
data(epil, package = "MASS")
s <- sleepstudy
e <- epil
record <- list(
  versions = list(TMB = as.character(packageVersion("TMB"))),
  sleepstudy = fit(s$Reaction, model.matrix(~Days, s), model.matrix(~Days, s),
                   s$Subject, 0L, c(250, 10)),
  epil = fit(as.numeric(e$y), model.matrix(~trt + V4, e), model.matrix(~1, e),
             e$subject, 1L, c(1.8, 0, 0))
)
write_json(record, "parts.json", digits = 12, auto_unbox = TRUE, pretty = TRUE)
