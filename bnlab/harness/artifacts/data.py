"""Data sets by name: read whole, split once and for all, standardized, on the device."""

import os
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional as F

from bnlab.files import digest
from bnlab.harness.artifacts.glyphs import CLASSES, DIFFICULTIES, FONTS, stored_glyphs
from bnlab.harness.artifacts.vision import torchvision
from bnlab.harness.errors import UserError

Pixels = tuple[Tensor, Tensor]
"""uint8 images [N, C, H, W] and int64 labels [N]."""


@dataclass
class DataConfig:
    """Which data; the split into training, validation and test images is the same for every run."""

    name: str = "digits"  # digits, glyphs, mnist, fashion_mnist, cifar10, cifar100, svhn, image_folder
    root: str = "data"  # where data sets are stored
    download: bool = False
    images: int | None = None  # training and validation images to use; None: all (glyphs makes 20,000)
    classes: int = 36  # glyphs: 10 digits, 36 with capitals, 62 with small letters
    difficulty: str = "medium"  # glyphs: weak, medium, strong
    fonts: str = "all"  # glyphs: dejavu, stix_cm, all; fonts of the training and validation images
    test_fonts: str = "all"  # glyphs: fonts of the test images; others than `fonts` are a shift
    image_size: int = 32  # image_folder: resize to this
    shift: int = 0  # augmentation: random shift by up to this many pixels
    flip: bool = False  # augmentation: random horizontal flip


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one split, shared by all runs of a process: not to be changed in place."""

    images: Tensor  # float32 [N, C, H, W], standardized, channels_last, on the device
    labels: Tensor  # int64 [N]
    digest: str = ""  # of the stored pixels and the labels


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits; `mean` and `std` are of the training split's stored pixels, one per channel."""

    name: str
    train: Split
    val: Split
    test: Split
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    largest: int  # value that a stored pixel can have; the smallest is 0

    def images_of(self, split: str) -> Split:
        """What is predicted of a split, test, val or train; of train as many images as test has, if there are."""
        if split != "train":
            return {"test": self.test, "val": self.val}[split]
        # The splits were drawn in random order, so that the first images are a fair sample.
        count = min(len(self.train.labels), len(self.test.labels))
        return Split(self.train.images[:count], self.train.labels[:count], f"{self.train.digest}-{count}")


@dataclass(frozen=True)
class Source:
    """A data set that torchvision reads."""

    reader: str  # class in torchvision.datasets
    url: str
    archives: tuple[str, ...]  # file names at `url`
    folder: str  # where torchvision looks for the archives, below root
    files: tuple[str, ...]  # what is read, below root
    train: int  # images
    test: int
    size: int  # pixels
    classes: int = 10


_IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _idx_source(reader: str, url: str) -> Source:
    folder = f"{reader}/raw"
    files = tuple(f"{folder}/{name}" for name in _IDX)
    return Source(reader, url, tuple(f"{name}.gz" for name in _IDX), folder, files, 60_000, 10_000, 28)


def _cifar_source(classes: int, folder: str, files: tuple[str, ...]) -> Source:
    archive = f"cifar-{classes}-python.tar.gz"
    files = tuple(f"{folder}/{name}" for name in files)
    url = "https://www.cs.toronto.edu/~kriz/"
    return Source(f"CIFAR{classes}", url, (archive,), ".", files, 50_000, 10_000, 32, classes)


_SVHN = ("train_32x32.mat", "test_32x32.mat")
_CIFAR10 = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
SOURCES = {
    "mnist": _idx_source("MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    "fashion_mnist": _idx_source("FashionMNIST", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"),
    "cifar10": _cifar_source(10, "cifar-10-batches-py", _CIFAR10),
    "cifar100": _cifar_source(100, "cifar-100-python", ("train", "test", "meta")),
    "svhn": Source("SVHN", "http://ufldl.stanford.edu/housenumbers/", _SVHN, ".", _SVHN, 73_257, 26_032, 32),
}

# What the training images of a data set depend on besides its name, number and augmentation.
_READ = {"glyphs": ("classes", "difficulty", "fonts"), "image_folder": ("image_size",)}
_FLIPPABLE = ("fashion_mnist", "cifar10", "cifar100", "image_folder")
_DIGITS, _DIGITS_TEST = 1797, 1797 // 5
_GLYPHS, _GLYPHS_TEST = 20_000, 5_000
_MOST_GLYPHS = 10_000_000  # images: more is a mistake
_LARGEST = 1024  # pixels across: more is a mistake


def check(config: DataConfig) -> int:
    """The number of training images, without reading or downloading them.

    Raises UserError for an unknown name, a value out of range, or files that are neither there nor to be
    downloaded.
    """
    _check_choices(config)
    if config.flip and config.name not in _FLIPPABLE:
        raise UserError(f"data.flip=true: a mirror image in {config.name} may be of another class; use false")
    size = _image_size(config)
    if not 8 <= config.image_size <= _LARGEST:
        raise UserError(f"data.image_size={config.image_size}: must be 8 to {_LARGEST:,}")
    if not 0 <= config.shift <= size // 2:
        raise UserError(f"data.shift={config.shift}: must be 0 to {size // 2}, half of the {size} pixels")
    available, used = _available(config), images_used(config)
    most, why = (_MOST_GLYPHS, "") if config.name == "glyphs" else (available, ", all that there are")
    if not 10 <= used <= most:
        allowed = f"10 to {most:,}{why}"
        raise UserError(f"data.images={used}: must be {allowed}")
    return used - _val_images(used)


def training_settings(config: DataConfig) -> dict[str, Any]:
    """The settings that the training images depend on; of an image folder also its files, by a digest.

    All other data sets have one content each: it is made from fixed seeds or published. Should that differ all the
    same, the digest of the training split does (`Split.digest`), which is stored with each network.
    """
    found = {key: getattr(config, key) for key in ("name", "images", "shift", "flip", *_READ.get(config.name, ()))}
    if config.name == "image_folder":
        found["files"] = _digest_of_files(config, "train")
    return found


def images_used(config: DataConfig) -> int:
    """Training and validation images, which `check` need not have approved."""
    return _available(config) if config.images is None else config.images


def predicted_images(config: DataConfig, split: str) -> int:
    """As many as `Dataset.images_of(split)` has, without reading them; `check` has approved the settings."""
    images = images_used(config)
    if split == "val":
        return _val_images(images)
    test = _available_for_test(config)
    return min(images - _val_images(images), test) if split == "train" else test


def load_dataset(config: DataConfig, device: torch.device | str = "cpu") -> Dataset:
    """The data set, standardized by its training split; read once per process.

    Raises UserError as `check` does, and for files that are corrupt.
    """
    check(config)
    files = [_digest_of_files(config, part) for part in ("train", "test") if config.name == "image_folder"]
    return _load(astuple(replace(config, shift=0, flip=False)), torch.device(device), tuple(files))


def augment(images: Tensor, generator: torch.Generator, *, shift: int, flip: bool) -> Tensor:
    """Each image [C, H, W] of a batch shifted by up to `shift` pixels each way and mirrored half the time.

    What comes in from outside is 0: the mean of standardized pixels. Draws nothing if both are off.
    """
    if not shift and not flip:
        return images
    n, _, height, width = images.shape
    at = generator.device
    down, right = torch.randint(2 * shift + 1, (2, n, 1), generator=generator, device=at)
    rows = down + torch.arange(height, device=at)
    columns = right + torch.arange(width, device=at)
    if flip:
        mirrored = torch.randint(2, (n, 1), generator=generator, device=at).bool()
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    which = torch.arange(n, device=images.device)
    # The slice between index tensors moves the channels to the end: the result is channels_last.
    padded = F.pad(images, [shift] * 4)
    return padded[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _check_choices(config: DataConfig) -> None:
    allowed: dict[str, tuple[str | int, ...]] = {
        "name": tuple(_READERS),
        "classes": tuple(CLASSES),
        "difficulty": tuple(DIFFICULTIES),
        "fonts": tuple(FONTS),
        "test_fonts": tuple(FONTS),
    }
    for key, values in allowed.items():
        value = getattr(config, key)
        if value not in values:
            raise UserError(f"data.{key}={value}: must be one of {', '.join(map(str, values))}")


def _image_size(config: DataConfig) -> int:
    if config.name in SOURCES:
        return SOURCES[config.name].size
    return {"digits": 8, "glyphs": 32, "image_folder": config.image_size}[config.name]


def _available(config: DataConfig) -> int:
    """Training and validation images that there are (glyphs: that are made unless told otherwise)."""
    if config.name == "digits":
        return _DIGITS - _DIGITS_TEST
    if config.name == "glyphs":
        return _GLYPHS
    if config.name == "image_folder":
        return len(_image_folder(config, "train"))
    source = SOURCES[config.name]
    if not config.download:
        _require_files(config, source)
    return source.train


def _available_for_test(config: DataConfig) -> int:
    """Test images; of glyphs a quarter as many as there are others, 5,000 at most."""
    if config.name == "glyphs":
        return min(_GLYPHS_TEST, images_used(config) // 4)
    if config.name == "image_folder":
        return len(_image_folder(config, "test"))
    return _DIGITS_TEST if config.name == "digits" else SOURCES[config.name].test


def _val_images(images: int) -> int:
    return images // 10


def _permutation(n: int) -> Tensor:
    # One seed for ever: a split that moved with the run's seed would mix training and test images.
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


@lru_cache(maxsize=2)
def _load(settings: tuple[object, ...], device: torch.device, files: tuple[str, ...]) -> Dataset:
    """`files`: digests, so that an image folder that has changed is read again."""
    config = DataConfig(*settings)  # type: ignore[arg-type]
    (images, labels), test, classes = _READERS[config.name](config)
    order = _permutation(len(images))[: config.images]
    val, train = order.tensor_split([_val_images(len(order))])
    mean, std = _pixel_moments(images[train])
    for channel, value in enumerate(std):
        if value == 0:
            raise UserError(f"{config.name}: channel {channel} is the same in all training pixels")

    def split(images: Tensor, labels: Tensor) -> Split:
        centre, scale = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (mean, std))
        pixels = images.to(device).contiguous(memory_format=torch.channels_last).float()
        return Split(pixels.sub_(centre).div_(scale), labels.to(device), _digest_of_images(images, labels))

    return Dataset(
        config.name,
        split(images[train], labels[train]),
        split(images[val], labels[val]),
        split(*test),
        classes,
        tuple(mean),
        tuple(std),
        16 if config.name == "digits" else 255,
    )


def _digest_of_images(images: Tensor, labels: Tensor) -> str:
    values = (tensor.contiguous().numpy().data for tensor in (images, labels))
    return digest(repr(tuple(images.shape)), *values, digits=16)


def _pixel_moments(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation (ddof 0) per channel of uint8 images, from exact counts, in float64."""
    values = torch.arange(256, dtype=torch.float64)
    mean, std = [], []
    for channel in range(images.shape[1]):
        pixels = images[:, channel].flatten()
        share = torch.bincount(pixels, minlength=256).double() / len(pixels)
        mean.append(float(share @ values))
        std.append(float(share @ (values - mean[-1]) ** 2) ** 0.5)
    return mean, std


def _read_digits(config: DataConfig) -> tuple[Pixels, Pixels, int]:
    from sklearn.datasets import load_digits  # here: takes a second to import

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    test, train = _permutation(_DIGITS).tensor_split([_DIGITS_TEST])
    return (images[train], labels[train]), (images[test], labels[test]), 10


def _read_glyphs(config: DataConfig) -> tuple[Pixels, Pixels, int]:
    folder = Path(config.root) / "glyphs"
    images, test_images = images_used(config), _available_for_test(config)
    train = stored_glyphs(folder, images, config.classes, config.difficulty, config.fonts, seed=0)
    test = stored_glyphs(folder, test_images, config.classes, config.difficulty, config.test_fonts, seed=1)
    return train, test, config.classes


def _read_source(config: DataConfig) -> tuple[Pixels, Pixels, int]:
    source = SOURCES[config.name]
    reader = getattr(torchvision().datasets, source.reader)
    if config.download and not all((Path(config.root) / name).is_file() for name in source.files):
        _download(config, source, reader)
    _require_files(config, source)
    train, test = (_read_part(config, source, reader, part) for part in ("train", "test"))
    return train, test, source.classes


def _part_argument(source: Source, part: str) -> dict[str, str | bool]:
    return {"split": part} if source.reader == "SVHN" else {"train": part == "train"}


def _download(config: DataConfig, source: Source, reader: Any) -> None:
    root = Path(config.root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{config.name}.lock"):  # two processes would write into the same file
            for part in ("train", "test"):
                reader(config.root, download=True, **_part_argument(source, part))
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{config.name}: download failed ({reason}); {_advice(config, source)}") from error


def _read_part(config: DataConfig, source: Source, reader: Any, part: str) -> Pixels:
    # CIFAR's files are pickles: torchvision opens them only after their MD5 sums have been verified.
    try:
        data = reader(config.root, download=False, **_part_argument(source, part))
        images = torch.as_tensor(data.data)
        labels = torch.as_tensor(data.labels if source.reader == "SVHN" else data.targets).long()
    except (AssertionError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        suspects = _suspects(Path(config.root), source, reader, part)
        raise UserError(f"{config.name}: corrupt: {suspects}; delete and {_advice(config, source)}") from error
    expected = getattr(source, part)
    if len(images) != expected or len(labels) != expected:
        found = f"{len(images):,} {part} images and {len(labels):,} labels instead of {expected:,}"
        raise UserError(f"{config.name}: {found} in {config.root}; delete them and {_advice(config, source)}")
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif source.reader.startswith("CIFAR"):
        images = images.permute(0, 3, 1, 2)
    return images, labels


def _suspects(root: Path, source: Source, reader: Any, part: str) -> str:
    """Files that torchvision's MD5 sums reject; MNIST's unpacked files have none: both files of the part."""
    if source.reader == "SVHN":
        sums = {name: md5 for _, name, md5 in reader.split_list.values()}
    elif source.reader.startswith("CIFAR"):
        sums = dict([*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])])
    else:
        prefix = "train" if part == "train" else "t10k"
        return " or ".join(str(root / name) for name in source.files if Path(name).name.startswith(prefix))
    intact = torchvision().datasets.utils.check_integrity
    return ", ".join(str(root / name) for name in source.files if not intact(root / name, sums[Path(name).name]))


def _require_files(config: DataConfig, source: Source) -> None:
    for name in source.files:
        path = Path(config.root) / name
        if not path.is_file():
            raise UserError(f"{config.name}: {path} is missing; {_advice(config, source)}")


def _advice(config: DataConfig, source: Source) -> str:
    folder = Path(config.root) / source.folder
    archives = ", ".join(source.archives)
    return f"set data.download=true (without a network, first put {archives} from {source.url} into {folder})"


def _image_folder(config: DataConfig, part: str) -> Any:
    """The torchvision ImageFolder of a part; raises UserError if there is none."""
    folder = Path(config.root) / "image_folder" / part
    try:
        return torchvision().datasets.ImageFolder(str(folder))
    except OSError as error:  # there is none, it is a file, or it cannot be read
        raise UserError(f"image_folder: {error}; put images into {folder}/<class>/") from error


def _digest_of_files(config: DataConfig, part: str) -> str:
    """Of the names and contents of all images in a part; contents are read once while the files stay as they are."""
    paths = [path for path, _ in _image_folder(config, part).samples]
    states = tuple((s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in map(os.stat, paths))
    return _digest_of_contents(Path(config.root) / "image_folder" / part, tuple(paths), states)


@lru_cache(maxsize=8)
def _digest_of_contents(folder: Path, paths: tuple[str, ...], states: tuple[object, ...]) -> str:
    parts: list[bytes] = []
    for path in paths:
        parts.append(os.fsencode(Path(path).relative_to(folder).as_posix()))
        parts.append(bytes.fromhex(digest(Path(path).read_bytes())))
    return digest(*parts, digits=16)


def _read_image_folder(config: DataConfig) -> tuple[Pixels, Pixels, int]:
    train, test = _image_folder(config, "train"), _image_folder(config, "test")
    if train.classes != test.classes:
        differing = ", ".join(sorted(set(train.classes) ^ set(test.classes)))
        raise UserError(f"image_folder: train and test need the same classes; only one of them has {differing}")
    images, labels = _read_images(test, config.image_size)
    order = _permutation(len(labels))  # a folder has class after class, of which a test batch would have one
    return _read_images(train, config.image_size), (images[order], labels[order]), len(train.classes)


def _read_images(folder: Any, size: int) -> Pixels:
    to_tensor = torchvision().transforms.functional.pil_to_tensor
    images = torch.empty(len(folder), 3, size, size, dtype=torch.uint8)
    for index, (path, _) in enumerate(folder.samples):
        try:
            images[index] = to_tensor(folder.loader(path).resize((size, size)))
        except (OSError, SyntaxError, ValueError) as error:  # PIL's answers to broken files
            raise UserError(f"image_folder: {path} is corrupt ({error}); replace or delete it") from error
        _require_bytes(path)
    return images, torch.tensor(folder.targets)


def _require_bytes(path: str) -> None:
    """UserError for an image of 16 or more bits a value: all above 255 would be white."""
    from PIL import Image

    with Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise UserError(f"image_folder: {path} has values of more than 8 bits ({image.mode}); store it with 8")


_READERS: dict[str, Callable[[DataConfig], tuple[Pixels, Pixels, int]]] = {
    "digits": _read_digits,
    "glyphs": _read_glyphs,
    **dict.fromkeys(SOURCES, _read_source),
    "image_folder": _read_image_folder,
}
