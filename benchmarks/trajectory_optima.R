# stepFlexmix on replicates of a design: Rscript trajectory_optima.R FOLDER GROUPS
# FORMULA FAMILY RUNS TRIES REPLICATE ...; each run is stepFlexmix(nrep = TRIES).
suppressMessages(library(flexmix))
given <- commandArgs(trailingOnly = TRUE)
folder <- given[1]
groups <- as.integer(given[2])
formula <- as.formula(given[3])
family <- given[4]
runs <- as.integer(given[5])
tries <- as.integer(given[6])

# One standard deviation for all groups, as in the design.
driver <- if (family == "gaussian") {
  FLXMRglmfix(family = "gaussian", varFix = TRUE)
} else {
  FLXMRglm(family = family)
}

for (replicate in given[-(1:6)]) {
  data <- read.csv(file.path(folder, paste0(replicate, ".csv")))
  data$failures <- 1 - data$y
  for (run in seq_len(runs)) {
    set.seed(1000 * as.integer(replicate) + run)
    start <- proc.time()
    fit <- tryCatch(
      suppressWarnings(stepFlexmix(formula, data = data, k = groups, nrep = tries,
        model = driver, verbose = FALSE,
        control = list(minprior = 0, iter.max = 1000))),
      error = function(e) NULL
    )
    cpu <- sum((proc.time() - start)[c(1, 2)])
    name <- file.path(folder, paste(replicate, run, sep = "-"))
    writeLines(format(cpu, digits = 10), paste0(name, ".cpu"))
    if (!is.null(fit) && fit@k == groups) {
      first <- !duplicated(data$id)
      write.csv(posterior(fit)[first, ], paste0(name, ".posterior"), row.names = FALSE)
    }
  }
}
cat('{"done": true}\n')
