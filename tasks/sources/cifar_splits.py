"""Serve CIFAR-FS and FC100, two divisions of the classes of CIFAR-100 (Krizhevsky 2009), as task sources: 32×32."""

from dataclasses import dataclass
from typing import ClassVar

from tasks.sources.cifar100 import cifar100_forms
from tasks.sources.image_store import SourceInfo
from tasks.sources.split_images import PackedForm, SplitImages, pickled_form

_CIFAR = "CIFAR-100, https://www.cs.toronto.edu/~kriz/cifar.html"
_FORMS = (
    "cifar-100-python/ as it is downloaded (meta, train and test), or train/, val/ and test/ of CLASS/IMAGE, or "
    "train.csv, val.csv and test.csv (filename,label) beside images/, or"
)


def _pickles(name: str) -> PackedForm:
    return pickled_form(f"{name}_train.pickle", f"{name}_val.pickle", f"{name}_test.pickle")


@dataclass(frozen=True)
class CifarFS(SplitImages):
    """CIFAR-FS: 64 classes for training, 16 for validation and 20 for test, at random (Bertinetto et al. 2019).

    root: a folder with CIFAR-100 as it is downloaded and unpacked, cifar-100-python, which is divided by the lists of
    the authors; or with CIFAR_FS_train.pickle, CIFAR_FS_val.pickle and CIFAR_FS_test.pickle (as of Lee et al. 2019;
    pickles are read without running any code in them); or a folder or a zip with train/, val/ and test/ of a folder for
    each class, or with tables; or a URI of one. It is only read. cache, size, channels, mean, std, on_bad_image: as in
    ImageFolder.
    """

    size: int = 32

    info: ClassVar[SourceInfo] = SourceInfo(
        "cifar_fs",
        _CIFAR,
        "Bertinetto, L., Henriques, J. F., Torr, P., and Vedaldi, A. (2019). Meta-learning with differentiable "
        "closed-form solvers. ICLR.",
        f"{_FORMS} CIFAR_FS_train.pickle, …val.pickle and …test.pickle",
    )
    packed: ClassVar[tuple[PackedForm, ...]] = (_pickles("CIFAR_FS"), *cifar100_forms("cifar-fs"))


@dataclass(frozen=True)
class FC100(SplitImages):
    """FC100: 60 classes of 12 superclasses for training, 20 of 4 for validation and 20 of 4 for test (Oreshkin et al.
    2018).

    root: as of CifarFS, with FC100_train.pickle and so on. Others: as in ImageFolder.
    """

    size: int = 32

    info: ClassVar[SourceInfo] = SourceInfo(
        "fc100",
        _CIFAR,
        "Oreshkin, B. N., Rodriguez, P., and Lacoste, A. (2018). TADAM: task dependent adaptive metric for improved "
        "few-shot learning. NeurIPS 31.",
        f"{_FORMS} FC100_train.pickle, …val.pickle and …test.pickle",
    )
    packed: ClassVar[tuple[PackedForm, ...]] = (_pickles("FC100"), *cifar100_forms("fc100"))
