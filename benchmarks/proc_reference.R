# The numbers that tests/test_statistics.py holds our DeLong against, by the R package pROC (Robin et al. 2011).
# Debian: apt-get install --no-install-recommends r-base-core r-cran-proc
# Run:    Rscript benchmarks/proc_reference.R
suppressPackageStartupMessages(library(pROC))
options(digits = 17)
cat(R.version.string, "pROC", as.character(packageVersion("pROC")), "\n")

show <- function(label, ...) cat(sprintf("%-14s", label), format(c(...), digits = 15), "\n")

curve <- function(y, score) roc(y, score, levels = c(0, 1), direction = "<", quiet = TRUE)

one <- function(label, r) {
  plain <- ci.auc(r, method = "delong")
  half <- qnorm(0.975) * sqrt(var(r, method = "delong")) / (auc(r) * (1 - auc(r)))
  show(label, auc(r), var(r, method = "delong"), plain[1], plain[3])
  show("  logit", plogis(qlogis(auc(r)) - half), plogis(qlogis(auc(r)) + half))
}

pair <- function(label, a, b) {
  test <- roc.test(a, b, method = "delong", paired = TRUE)
  show(label, cov(a, b, method = "delong"), test$statistic, test$p.value, test$conf.int)
}

cat("\nmade by formula, with ties: auc, variance, 95 % interval; then covariance, z, p, 95 % interval\n")
i <- 0:119
y <- as.integer((7 * i * i + 3 * i) %% 11 < 4)
a <- (37 * i) %% 101 + 25 * y
b <- ((53 * i) %% 97) %/% 10 + 3 * y
c <- (29 * i * i + 5 * i) %% 7
scores <- list(a = curve(y, a), b = curve(y, b), c = curve(y, c))
for (name in names(scores)) one(name, scores[[name]])
pair("a - b", scores$a, scores$b)
pair("a - c", scores$a, scores$c)
pair("b - c", scores$b, scores$c)

cat("\naSAH (Turck et al. 2010, in pROC): the same; and the counts of wfns by outcome\n")
data(aSAH)
poor <- as.integer(aSAH$outcome == "Poor")
wfns <- as.integer(aSAH$wfns)
print(table(poor, wfns))
scores <- list(s100b = curve(poor, aSAH$s100b), ndka = curve(poor, aSAH$ndka), wfns = curve(poor, wfns))
for (name in names(scores)) one(name, scores[[name]])
pair("s100b - ndka", scores$s100b, scores$ndka)
pair("wfns - s100b", scores$wfns, scores$s100b)
pair("wfns - ndka", scores$wfns, scores$ndka)
