"""The portable bundle: everything between an image and a decision in one folder or .zip, without a pickle.

archive   its files, read as if a stranger had made them      contents  bundle.json, checked field by field
lanes     pixels -> what each network sees                    parts     the models on that
trees     LightGBM's text, read without its own loader        novelty   how unlike the training images an image is
golden    drawn images whose probabilities must come out    loading   a bundle -> a predictor
predictor images -> predictions                             portable  the same as one torch module, for export

    from models.predictor import load
    predictor = load("artifacts/bundles/pneumonia/...")
    found = predictor(["one.dcm", "other.png"])
"""

from models.predictor.loading import load
from models.predictor.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor", "load"]
