"""The words of Firn's pages, each explained in a sentence or two for a reader who is not of the field."""

from __future__ import annotations

GLOSSARY: dict[str, str] = {
    "image": "One picture as it was taken: a radiograph, a patch of a slide, a cell.",
    "group": "Images that belong together, as those of one patient or one slide. No group is on both sides of a split, "
    "and intervals count groups, not images.",
    "class": "What an image shows, as a label says: one of two (normal, pneumonia) or of several.",
    "positive class": "The one of two classes that is looked for, as a rule the disease. Sensitivity is about it.",
    "split": "Which images a model learns from (training), is chosen by (validation) and is judged on (test).",
    "test images": "Images that no model learned from and no choice was made on.",
    "fold": "A part of the training images that is left out while a model learns from the others, and then predicted.",
    "cross-validation": "Every fold is left out once, so that each image is predicted by a model that never saw it or "
    "its group. Where settings are chosen too, they are chosen inside the other folds (nested).",
    "backbone": "A network trained on a large collection of images, whose weights turn an image into features.",
    "block": "A stage of a backbone. Early blocks see edges and textures, late ones whole structures.",
    "feature": "A number that a backbone computes of an image; some hundreds to thousands make up what a head sees.",
    "feature map": "Features with their place: what a block saw in each part of the image.",
    "cache": "The file in which features are kept, so that a backbone runs once and heads train in seconds.",
    "view": "The features that a head is trained on: of which backbone and blocks, and how a map is made one number.",
    "head": "The small model that is trained on features and gives probabilities.",
    "fine-tuning": "Training some blocks of a backbone, or all, together with the head.",
    "stack": "A head trained on the predictions of other models, which combines them.",
    "run": "A trained head with its predictions, its settings and where its features came from.",
    "prediction": "The probability of each class that a model gives to an image.",
    "operating point": "The probability from which on an image is called positive. It is chosen on validation "
    "images: one for the best balance, one for a stated sensitivity.",
    "sensitivity": "The share of positive images that is called positive. One minus it is the share that is missed.",
    "specificity": "The share of negative images that is called negative. One minus it is the share of false alarms.",
    "balanced accuracy": "The mean over classes of the share that is called right; 0.5 is guessing between two.",
    "ROC AUC": "The chance that a positive image gets a higher probability than a negative one: 1 is perfect, 0.5 "
    "guessing. It needs no operating point. Of several classes it is the mean over them.",
    "PR AUC": "The mean precision over all sensitivities. Guessing has the share of positive images.",
    "precision": "The share of images called positive that are positive. It depends on how common the disease is.",
    "MCC": "Matthews' correlation between the true and the called class: 1 is perfect, 0 guessing.",
    "log loss": "How surprised the probabilities are by the truth; lower is better.",
    "Brier score": "The mean squared distance of probabilities from the truth; lower is better.",
    "calibration": "Whether probabilities are meant: of images given 0.8, eight of ten should be positive. Slope 1 and "
    "intercept 0 are perfect; a slope below 1 says that probabilities are too extreme.",
    "prevalence": "The share of positive images, or patients, where a model is used.",
    "net benefit": "True positives less false ones, weighed by how many false alarms a found case is worth.",
    "95 % interval": "Values of a score that the images at hand do not speak against. With other patients it would "
    "contain the true value 95 times in 100.",
    "no detectable difference": "The images cannot tell two models apart. That does not make them equal.",
    "equivalent": "The difference lies within a margin that was stated beforehand.",
    "corrected for the choice": "The best of many models looks better than it is on the images that chose it; this "
    "takes that out.",
    "class activation map": "Where in the image the evidence for a class lies, as the model sees it.",
    "out-of-distribution": "Unlike the training images, so that a prediction may mean nothing.",
    "learning curve": "How the score grows with the number of groups that a model learns from.",
    "subgroup": "Images of one value of a further column: of one sex, age, site or device.",
}


def anchor(term: str) -> str:
    """Return the name of a term's place on a page, as GitHub makes it for a heading."""
    return "".join(c for c in term.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def sorted_terms() -> list[str]:
    """Return the terms in alphabetical order."""
    return sorted(GLOSSARY, key=str.lower)
