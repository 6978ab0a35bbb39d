# One cell of the benchmark in R: load, warm up, time, print a line of JSON.
args <- commandArgs(trailingOnly = TRUE)
names(args) <- c("library", "task", "design", "n", "threads", "folder")
n <- as.integer(args[["n"]])
threads <- as.integer(args[["threads"]])
task <- args[["task"]]
with_factor <- args[["design"]] == "B"
fixest <- args[["library"]] == "R fixest"
columns <- paste0("x", 1:20)

doubles <- function(name, size) {
  readBin(file.path(args[["folder"]], name), "double", n = size)
}
integers <- function(name) {
  readBin(file.path(args[["folder"]], name), "integer", n = n, size = 4)
}
X <- matrix(doubles("X", n * 20), n, 20, dimnames = list(NULL, columns))
frame <- data.frame(
  X, y = doubles("y", n), count = doubles("count", n), binary = doubles("binary", n),
  factor = factor(integers("factor")), cluster = integers("cluster")
)
rm(X)

response <- switch(task, poisson = "count", logit = "binary", "y")
rhs <- paste(columns, collapse = " + ")
if (with_factor) rhs <- paste(rhs, if (fixest) "| factor" else "+ factor")
formula <- as.formula(paste(response, "~", rhs))

fit_base <- function(frame) {
  if (task %in% c("poisson", "logit")) {
    family <- if (task == "poisson") poisson() else binomial()
    return(coef(summary(glm(formula, family, frame)))[columns, 1:2])
  }
  model <- lm(formula, frame)
  V <- if (task == "ols_hc1") sandwich::vcovHC(model, type = "HC1") else
    sandwich::vcovCL(model, cluster = frame$cluster, type = "HC1")
  cbind(coef(model), sqrt(diag(V)))[columns, ]
}
fit_fixest <- function(frame) {
  full <- fixest::ssc(fixef.K = "full")
  none <- fixest::ssc(adj = FALSE, cluster.adj = FALSE)
  model <- switch(
    task,
    ols_hc1 = fixest::feols(formula, frame, vcov = "hc1", ssc = full),
    ols_cluster = fixest::feols(formula, frame, vcov = ~cluster, ssc = full),
    poisson = fixest::fepois(formula, frame, vcov = "iid", ssc = none),
    logit = fixest::feglm(formula, frame, family = binomial(), vcov = "iid", ssc = none)
  )
  fixest::coeftable(model)[columns, 1:2]
}
fit <- if (fixest) fit_fixest else fit_base
if (fixest) fixest::setFixest_nthreads(threads)

status <- function(field) {
  line <- grep(paste0("^", field, ":"), readLines("/proc/self/status"), value = TRUE)
  as.numeric(gsub("[^0-9]", "", line)) * 1024
}
invisible(suppressWarnings(fit(head(frame, 4000))))
taken <- NULL
while (is.null(taken) || (nrow(taken) < 3 && sum(taken[, "wall"]) < 5)) {
  invisible(gc())
  before <- status("VmRSS")
  try(cat("5", file = "/proc/self/clear_refs"), silent = TRUE)
  took <- system.time(table <- fit(frame))
  cpu <- sum(took[c("user.self", "sys.self", "user.child", "sys.child")], na.rm = TRUE)
  extra <- max(status("VmHWM") - before, 0)
  taken <- rbind(taken, c(cpu = cpu, wall = took[["elapsed"]], extra = extra))
}

values <- function(x) paste(sprintf("%.17g", x), collapse = ", ")
cat(sprintf(
  '{"frame": {"cpu": %.6f, "wall": %.6f, "extra": %.0f}, "slopes": [%s], "errors": [%s], "iterations": null}\n',
  min(taken[, "cpu"]), min(taken[, "wall"]), max(taken[, "extra"]), values(table[, 1]), values(table[, 2])
))
