"""Every strength and every fold of L2-regularised logistic regression in one batched optimisation.

arrays       where numpy and torch differ
design       the features as every fold sees them, standardised without being copied for each
loss         the logistic loss in margins
metric       an inverse Hessian shared by neighbouring problems
descent      limited-memory BFGS on all problems of a block at once
certificate  objective and gradient in float64, and the bound that they prove
path         blocks of strengths, each started from the path of those before
stream       the same for features larger than memory, all problems with one pass over the rows per step
solution     what comes out, in the features' own units: `sweep`, `Sweep`, scores
"""

from models.logistic_path.solution import Sweep, balanced, decision, out_of_fold, predicted, strengths, sweep

__all__ = ["Sweep", "balanced", "decision", "out_of_fold", "predicted", "strengths", "sweep"]
