"""The portable bundle: everything between an image and a decision in one folder or .zip, without a pickle.

build      a run -> the files of a bundle                     manifest   bundle.json, checked field by field
archive    its files, read as if a stranger had made them     backbones  pixels -> what each network sees
heads      the models on that                                 trees      LightGBM's text, read without its own loader
ood        how unlike the training images an image is         loading    a bundle, self-tested, -> a predictor
predictor  images -> predictions                             export     the same as a torch module, for ONNX

    from models.predictor.loading import load
    predictor = load("artifacts/bundles/pneumonia/...")
    found = predictor(["one.dcm", "other.png"])
"""
