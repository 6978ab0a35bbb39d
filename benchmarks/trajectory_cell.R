# One cell of the benchmark of trajectory models in R: load, warm up, time, print JSON.
suppressPackageStartupMessages(library(flexmix))
args <- commandArgs(trailingOnly = TRUE)
names(args) <- c("formula", "family", "groups", "starts", "folder")
formula <- as.formula(args[["formula"]])
groups <- as.integer(args[["groups"]])
starts <- as.integer(args[["starts"]])

read_column <- function(line, folder) {
  path <- file.path(folder, line[1])
  size <- file.size(path)
  if (line[2] == "number") return(readBin(path, "double", n = size / 8))
  readBin(path, "integer", n = size / 4, size = 4)
}
read_frame <- function(name) {
  folder <- file.path(args[["folder"]], name)
  lines <- strsplit(readLines(file.path(folder, "columns")), " ")
  columns <- lapply(lines, read_column, folder = folder)
  names(columns) <- vapply(lines, `[`, "", 1)
  as.data.frame(columns, optional = TRUE)
}
# The default drops groups of less than a share of 0.05: another model.
control <- list(tolerance = 1e-8, iter.max = 2000, minprior = 0)
fit <- function(data) {
  model <- FLXMRglm(family = args[["family"]])
  found <- if (starts == 0) {
    flexmix(formula, data$rows, k = groups, model = model,
            cluster = data$labels, control = control)
  } else {
    stepFlexmix(formula, data = data$rows, k = groups, nrep = starts, model = model,
                control = control, verbose = FALSE)
  }
  errors <- refit(found)
  list(model = found, errors = errors, table = capture.output(summary(errors)))
}
# flexmix begins from a label for every row.
read_data <- function(name) {
  rows <- read_frame(name)
  path <- file.path(name, "units")
  labels <- NULL
  if (dir.exists(file.path(args[["folder"]], path))) {
    units <- read_frame(path)
    labels <- units$label[match(rows$id, units$id)]
  }
  list(rows = rows, labels = labels)
}

status <- function(field) {
  line <- grep(paste0("^", field, ":"), readLines("/proc/self/status"), value = TRUE)
  as.numeric(gsub("[^0-9]", "", line)) * 1024
}
seconds <- function(took) {
  fields <- c("user.self", "sys.self", "user.child", "sys.child")
  c(cpu = sum(took[fields], na.rm = TRUE), wall = took[["elapsed"]])
}
set.seed(1)
invisible(suppressWarnings(fit(read_data("warm"))))
data <- read_data("rows")
taken <- NULL
while (is.null(taken) || (nrow(taken) < 3 && sum(taken[, "wall"]) < 5)) {
  found <- NULL
  invisible(gc())
  before <- status("VmRSS")
  try(cat("5", file = "/proc/self/clear_refs"), silent = TRUE)
  took <- system.time(found <- suppressWarnings(fit(data)), gcFirst = FALSE)
  taken <- rbind(taken, c(seconds(took), extra = max(status("VmHWM") - before, 0)))
}
least <- c(apply(taken[, c("cpu", "wall"), drop = FALSE], 2, min))

# Groups ascending by the mean of their curve, as deepstats numbers them.
level <- colMeans(do.call(cbind, fitted(found$model, drop = FALSE)))
coefs <- found$errors@coef
errors <- sqrt(diag(found$errors@vcov))
of_group <- function(k) grep(sprintf("Comp\\.%d_coef", k), names(coefs))
place <- unlist(lapply(order(level), of_group))
number <- function(x) ifelse(is.finite(x), sprintf("%.17g", x), "null")
values <- function(x) paste(number(x), collapse = ", ")
cat(sprintf(
  '{"frame": {"cpu": %.6f, "wall": %.6f, "extra": %.0f}, "loglik": %.17g, "beta": [%s], "errors": [%s]}\n',
  least[["cpu"]], least[["wall"]], max(taken[, "extra"]), c(logLik(found$model)),
  values(coefs[place]), values(errors[place])
))
