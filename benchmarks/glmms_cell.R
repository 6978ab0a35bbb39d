# One cell of the benchmark of generalised mixed models in R: load, warm up, time, print.
args <- commandArgs(trailingOnly = TRUE)
names(args) <- c("package", "formula", "family", "zero", "folder")
suppressWarnings(suppressPackageStartupMessages(
  library(args[["package"]], character.only = TRUE)
))
formula <- as.formula(args[["formula"]])
zero <- as.formula(args[["zero"]])

read_column <- function(line, folder) {
  path <- file.path(folder, line[1])
  size <- file.size(path)
  if (line[2] == "number") return(readBin(path, "double", n = size / 8))
  if (line[2] == "whole") return(readBin(path, "integer", n = size / 4, size = 4))
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
fit <- function(frame) {
  if (args[["package"]] == "lme4") {
    model <- suppressMessages(glmer(formula, frame, family = args[["family"]]))
    return(list(model = model, table = coef(summary(model))))
  }
  family <- get(args[["family"]])()
  model <- glmmTMB(formula, frame, family = family, ziformula = zero)
  list(model = model, table = coef(summary(model))$cond)
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

number <- function(x) ifelse(is.finite(x), sprintf("%.17g", x), "null")
values <- function(x) paste(number(x), collapse = ", ")
cat(sprintf(
  '{"frame": {"cpu": %.6f, "wall": %.6f, "extra": %.0f}, "loglik": %.17g, "beta": [%s], "errors": [%s]}\n',
  least[["cpu"]], least[["wall"]], max(taken[, "extra"]), c(logLik(found$model)),
  values(found$table[, 1]), values(found$table[, 2])
))
