"""Serve miniImageNet (Vinyals et al. 2016) as a task source: 100 classes of ImageNet, 600 images each, 84×84.

The splits of Ravi and Larochelle (2017), 64 classes for training, 16 for validation and 20 for test, are part of every
copy.
"""

from dataclasses import dataclass
from typing import ClassVar

from tasks.sources.image_store import SourceInfo
from tasks.sources.split_images import PackedForm, SplitImages, pickled_form

_CACHES = ("mini-imagenet-cache-train.pkl", "mini-imagenet-cache-val.pkl", "mini-imagenet-cache-test.pkl")
_CATEGORIES = (
    "miniImageNet_category_split_train_phase_train.pickle",
    "miniImageNet_category_split_val.pickle",
    "miniImageNet_category_split_test.pickle",
)
_INFO = SourceInfo(
    "mini_imagenet",
    "ImageNet, https://www.image-net.org, in the splits of https://github.com/twitter-research/meta-learning-lstm",
    "Vinyals, O., Blundell, C., Lillicrap, T., Kavukcuoglu, K., and Wierstra, D. (2016). Matching networks for one "
    "shot learning. NeurIPS 29. Splits: Ravi, S., and Larochelle, H. (2017). Optimization as a model for few-shot "
    "learning. ICLR.",
    "train.csv, val.csv and test.csv (filename,label) beside images/, or train/, val/ and test/ of CLASS/IMAGE, or "
    f"{_CACHES[0]}, …val.pkl and …test.pkl, or {_CATEGORIES[0]}, …val.pickle and …test.pickle",
)


@dataclass(frozen=True)
class MiniImageNet(SplitImages):
    """miniImageNet as a task source, from a copy of the user's own: there is no official download.

    root: a folder or a zip, in one of the common forms: train.csv, val.csv and test.csv beside images/; train/, val/
    and test/ of a folder for each class; or a folder with either of two kinds of pickles, mini-imagenet-cache-train.pkl
    and so on (Ren et al. 2018), or miniImageNet_category_split_train_phase_train.pickle and so on (Gidaris and
    Komodakis 2018), which are read without running any code in them. It is only read. It may be a URI, such as
    s3://BUCKET/FOLDER.
    cache: where the store is kept; None for $METATRAIN_CACHE or ~/.cache/metatrain. A URI, such as s3://BUCKET/FOLDER,
    is a cache that machines share; each keeps its downloads in the folder for None.
    size, channels, mean, std, on_bad_image: as in ImageFolder.
    """

    info: ClassVar[SourceInfo] = _INFO
    packed: ClassVar[tuple[PackedForm, ...]] = (pickled_form(*_CACHES), pickled_form(*_CATEGORIES))
