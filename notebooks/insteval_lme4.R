# Random effects of lme4 on InstEval, for the comparison in notebooks/mixed.py:
#   Rscript insteval_lme4.R insteval_lme4.csv
library(lme4)
target <- commandArgs(trailingOnly = TRUE)[1]
control <- lmerControl(calc.derivs = FALSE)
fit <- lmer(y ~ service + (1 | s) + (1 | d) + (1 | dept), InstEval, control = control)
effects <- as.data.frame(ranef(fit, condVar = FALSE))
frame <- data.frame(
  factor = effects$grpvar,
  level = effects$grp,
  effect = sprintf("%.6f", effects$condval)
)
write.csv(frame, target, row.names = FALSE, quote = FALSE)
cat("lme4", as.character(packageVersion("lme4")), " REML criterion", REMLcrit(fit), "\n")
print(VarCorr(fit), comp = c("Variance", "Std.Dev."), digits = 7)
print(fixef(fit), digits = 8)
