"""The options that several verbs share: one spelling, one help text, one default."""

from __future__ import annotations

from typing import Annotated

import typer

Dataset = Annotated[
    str, typer.Option(help="A name of the table, or a path: class folders, CSV, .npz, DICOM with CSV, pack (.h5).")
]
Backbone = Annotated[str, typer.Option(help="One or several torchvision CNNs, separated by blanks.")]
CachedBackbone = Annotated[
    str, typer.Option(help="Backbones separated by blanks, a+b for a joined view; empty is resnet18, or a pack's own.")
]
Weights = Annotated[str, typer.Option(help="A weights file of your own (.pth or .safetensors) for the backbone.")]
Preprocess = Annotated[str, typer.Option(help="squash, pad (whole image) or crop (torchvision's centre crop).")]
Precision = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16: the arithmetic of the network.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]
Maps = Annotated[
    str, typer.Option(help="Blocks whose feature maps are kept too, by name, by number of last ones, or all.")
]
BatchSize = Annotated[int, typer.Option(min=0, help="Images per forward pass; 0 chooses.")]
Workers = Annotated[int, typer.Option(min=0, help="Threads that read (on a GPU as many decode); 0 is one per core.")]
Heads = Annotated[str, typer.Option(help="Heads separated by blanks, or all.")]
Blocks = Annotated[str, typer.Option(help="Blocks of the view: names, a number of last ones, or all.")]
Pool = Annotated[str, typer.Option(help="avg, max or both; of cached maps: gem, grid2 or grid3.")]
Labels = Annotated[
    str, typer.Option(help="classes, or a coarser view of them that the data set has (cervical: binary).")
]
Protocol = Annotated[
    str, typer.Option(help="split (the publisher's test images) or cv (repeated nested cross-validation).")
]
Budget = Annotated[float, typer.Option(min=0, help="Seconds for a search over views and heads; 0 is no search.")]
Thawed = Annotated[str, typer.Option(help="What is trained: a number of last blocks, names, a module, or all.")]
TrainingRecipe = Annotated[str, typer.Option(help="adamw (cosine decay), or article (SGD 0.9 with StepLR(10, 0.1)).")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Most epochs; the recipe's own without.")]
Rate = Annotated[float | None, typer.Option(help="Learning rate; the recipe's own without.")]
ThawBatch = Annotated[int | None, typer.Option(min=2, help="Images per step; 64 without.")]
Views = Annotated[
    int, typer.Option(min=1, help="Cached views per image (shift, turn, zoom, brightness), one an epoch.")
]
Flip = Annotated[str, typer.Option(help="none, mirror (left and right), any (quarter turns too): in the views.")]
Norm = Annotated[str | None, typer.Option(help="Batch normalisation: frozen, or adapt (to the new images).")]
Mixup = Annotated[float | None, typer.Option(min=0, help="Mixup of cached maps, the Beta parameter; 0 is none.")]
Dropout = Annotated[float | None, typer.Option(min=0, help="Share of the maps' channels that an image loses.")]
ClassWeights = Annotated[str | None, typer.Option(help="none or balanced.")]
Average = Annotated[str | None, typer.Option(help="none, or ema: a moving average of the weights is what is kept.")]
Source = Annotated[str, typer.Option(help="The data set on which the backbone is thawed first.")]
Target = Annotated[str, typer.Option(help="The data set that it is all for.")]
Shared = Annotated[str, typer.Option(help="A data set between the two, on which the backbone is thawed second.")]
ThawTarget = Annotated[bool, typer.Option("--thaw", help="Thaw both backbones on the target too.")]
Explained = Annotated[
    str,
    typer.Option(
        help="Heads with class maps, a sheet each: logistic sgd lda ridge map finetuned; empty is the best run."
    ),
]
PerRow = Annotated[int, typer.Option(min=2, help="Images in a line of the sheet.")]
Model = Annotated[
    str,
    typer.Option(
        help="A bundle (folder or .zip), or the folder of a run; empty is the run that validation chooses of DATASET."
    ),
]
Wanted = Annotated[str, typer.Option(help="Heads (or finetuned) of which the best run is taken; empty is any.")]
Images = Annotated[str, typer.Option(help="A folder of images, one image, or a CSV with a column of paths.")]
OperatingPoint = Annotated[
    str, typer.Option(help="youden, sensitivity>=0.95, or a probability of the second of two classes; empty is youden.")
]
Overlays = Annotated[bool, typer.Option("--overlays", help="Also write every image with its class map laid over it.")]
CalibrationOption = Annotated[
    str,
    typer.Option(help="platt, temperature, isotonic or none: of the calibrated probabilities, learned out of fold."),
]
FormatOption = Annotated[str, typer.Option("--format", help="onnx, program (torch.export) or torchscript.")]
Trial = Annotated[str, typer.Option(help="Images that the export is checked on; empty is test images of the set.")]
FileOut = Annotated[str, typer.Option(help="The file to write; empty is one below artifacts/exports.")]
Recorded = Annotated[
    str, typer.Option(help="The folder of a run; empty is the run that validation chooses of DATASET.")
]
WithWeights = Annotated[
    bool, typer.Option("--with-weights", help="Put the weights inside also where their digest would do.")
]
BundleOut = Annotated[
    str, typer.Option(help="A folder, or a name that ends in .zip; empty is below artifacts/bundles.")
]
FolderOut = Annotated[str, typer.Option(help="The folder to write into; empty is one below artifacts.")]
Seed = Annotated[int, typer.Option(help="Seed of splits, folds and heads.")]
Out = Annotated[str, typer.Option(help="The file to write, ending in .h5; empty is a name below artifacts/packs.")]
Yes = Annotated[bool, typer.Option("--yes", help="Remove what is listed; without it nothing is touched.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first unreadable image.")]
Engine = Annotated[str, typer.Option(help="local, or ray: all GPUs or cores of a machine or a cluster ($RAY_ADDRESS).")]

PNEUMONIA, RESNET18 = "pneumonia", "resnet18"
