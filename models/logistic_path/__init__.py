"""L2-regularised logistic regression for every strength and every fold at once, each solution with its duality gap.

arrays          the operations in which numpy and torch differ
design          the features standardised on each fold's training rows, without a copy for each
loss            the logistic loss as a function of margins
preconditioner  an inverse Hessian shared by neighbouring problems
lbfgs           preconditioned L-BFGS on a batch of problems
duality_gap     objective and gap in float64
strengths       the grid of C; blocks of strengths, each warm-started from those before
out_of_core     the same for features larger than memory, all problems with one pass over the rows per step
solution        the public interface: `sweep`, `sweep_findings`, `Sweep`, out-of-fold probabilities
"""

from models.logistic_path.arrays import one_thread
from models.logistic_path.solution import Sweep, balanced, out_of_fold, predicted, sweep, sweep_findings
from models.logistic_path.strengths import strengths

__all__ = ["Sweep", "balanced", "one_thread", "out_of_fold", "predicted", "strengths", "sweep", "sweep_findings"]
