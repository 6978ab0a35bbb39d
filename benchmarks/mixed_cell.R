# One cell of the benchmark of mixed models in R: load, warm up, time, print JSON.
suppressPackageStartupMessages(library(lme4))
args <- commandArgs(trailingOnly = TRUE)
names(args) <- c("formula", "reml", "folder")
formula <- as.formula(args[["formula"]])
reml <- args[["reml"]] == "True"

read_column <- function(line, folder) {
  path <- file.path(folder, line[1])
  size <- file.size(path)
  if (line[2] == "number") return(readBin(path, "double", n = size / 8))
  codes <- readBin(path, "integer", n = size / 4, size = 4) + 1L
  structure(codes, levels = readLines(paste0(path, ".levels")), class = "factor")
}
read_frame <- function(name) {
  folder <- file.path(args[["folder"]], name)
  lines <- strsplit(readLines(file.path(folder, "columns")), " ")
  columns <- lapply(lines, read_column, folder = folder)
  names(columns) <- vapply(lines, `[`, "", 1)
  as.data.frame(columns, optional = TRUE)
}
# Without the finite differences that only serve its convergence warnings.
control <- lmerControl(calc.derivs = FALSE)
fit <- function(frame) {
  model <- suppressMessages(lmer(formula, frame, REML = reml, control = control))
  list(model = model, table = coef(summary(model)))
}

status <- function(field) {
  line <- grep(paste0("^", field, ":"), readLines("/proc/self/status"), value = TRUE)
  as.numeric(gsub("[^0-9]", "", line)) * 1024
}
seconds <- function(took) {
  fields <- c("user.self", "sys.self", "user.child", "sys.child")
  c(cpu = sum(took[fields], na.rm = TRUE), wall = took[["elapsed"]])
}
invisible(suppressWarnings(fit(read_frame("warm"))))
frame <- read_frame("rows")
taken <- NULL
while (is.null(taken) || (nrow(taken) < 3 && sum(taken[, "wall"]) < 5)) {
  found <- NULL
  invisible(gc())
  before <- status("VmRSS")
  try(cat("5", file = "/proc/self/clear_refs"), silent = TRUE)
  took <- system.time(found <- suppressWarnings(fit(frame)), gcFirst = FALSE)
  taken <- rbind(taken, c(seconds(took), extra = max(status("VmHWM") - before, 0)))
}
least <- c(apply(taken[, c("cpu", "wall"), drop = FALSE], 2, min))
if (least[["wall"]] < 0.1) {
  batches <- replicate(5, seconds(system.time(
    for (i in 1:10) suppressWarnings(fit(frame)),
    gcFirst = FALSE
  )))
  least <- apply(batches, 1, min) / 10
}

spreads <- as.data.frame(VarCorr(found$model))
label <- function(i) {
  row <- spreads[i, ]
  if (row$grp == "Residual") return("sigma")
  terms <- c(row$var1, if (!is.na(row$var2)) row$var2)
  terms[terms == "(Intercept)"] <- "1"
  group <- paste(sort(strsplit(row$grp, ":")[[1]], method = "radix"), collapse = ":")
  paste(group, paste(sort(terms, method = "radix"), collapse = ","))
}
number <- function(x) ifelse(is.finite(x), sprintf("%.17g", x), "null")
values <- function(x) paste(number(x), collapse = ", ")
named <- paste(sprintf(
  '"%s": %s', vapply(seq_len(nrow(spreads)), label, ""), number(spreads$sdcor)
), collapse = ", ")
cat(sprintf(
  '{"frame": {"cpu": %.6f, "wall": %.6f, "extra": %.0f}, "loglik": %.17g, "beta": [%s], "errors": [%s], "spreads": {%s}, "iterations": %d}\n',
  least[["cpu"]], least[["wall"]], max(taken[, "extra"]), c(logLik(found$model)),
  values(found$table[, 1]), values(found$table[, 2]), named,
  as.integer(found$model@optinfo$feval)
))
