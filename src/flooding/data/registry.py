"""Where the files of real data sets are published, and the checksums of their contents."""

from __future__ import annotations

__all__ = ["ARCHIVES", "FILES"]

_PMLB = "https://github.com/EpistasisLab/pmlb/raw/master/datasets"
_LIGHTGBM = "https://github.com/microsoft/LightGBM/raw/v4.5.0/examples/binary_classification"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"
_KUZUSHIJI = "http://codh.rois.ac.jp/kmnist/dataset/kmnist"
_SVHN = "http://ufldl.stanford.edu/housenumbers"
_CIFAR = "https://www.cs.toronto.edu/~kriz"
_CIFAR10H = "https://github.com/jcpeterson/cifar-10h/raw/master/data"

#: Address and checksum of each file. A sha256 is that of the decompressed content, so a user may
#: compress the file again. "md5:..." is that of the file as it is served, where nothing else is
#: published; such a file must be kept as it is.
FILES: dict[str, tuple[str, str]] = {
    "tables/spambase.tsv": (
        f"{_PMLB}/spambase/spambase.tsv.gz",
        "69715f29b059c51b89c708afdcc7af1304685f5425d4614abf59cc61bcde97ae",
    ),
    "tables/letter.tsv": (
        f"{_PMLB}/letter/letter.tsv.gz",
        "1ce967cac310120042a497760cb642e21b26d813e87c87fa1bb13896da6c812c",
    ),
    "tables/twonorm.tsv": (
        f"{_PMLB}/twonorm/twonorm.tsv.gz",
        "8b6ffbf0465d6791555327dcbd82187ba5d9b8e88a01ecbeea7b56cace075041",
    ),
    "tables/higgs7k.train": (
        f"{_LIGHTGBM}/binary.train",
        "41c42dc14f86960256bf872fc8ae6286c688b44f43b4057b29428787fc1e0444",
    ),
    "tables/higgs7k.test": (
        f"{_LIGHTGBM}/binary.test",
        "d99ebec91acd99638f00c727c251c947a1d17ddfcbea27bfef6b0dc5e5fb1db3",
    ),
    "fashion-mnist/train-images-idx3-ubyte": (
        f"{_FASHION}/train-images-idx3-ubyte.gz",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "fashion-mnist/train-labels-idx1-ubyte": (
        f"{_FASHION}/train-labels-idx1-ubyte.gz",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "fashion-mnist/t10k-images-idx3-ubyte": (
        f"{_FASHION}/t10k-images-idx3-ubyte.gz",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "fashion-mnist/t10k-labels-idx1-ubyte": (
        f"{_FASHION}/t10k-labels-idx1-ubyte.gz",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    "mnist/train-images-idx3-ubyte": (
        f"{_MNIST}/train-images-idx3-ubyte.gz",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "mnist/train-labels-idx1-ubyte": (
        f"{_MNIST}/train-labels-idx1-ubyte.gz",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "mnist/t10k-images-idx3-ubyte": (
        f"{_MNIST}/t10k-images-idx3-ubyte.gz",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "mnist/t10k-labels-idx1-ubyte": (
        f"{_MNIST}/t10k-labels-idx1-ubyte.gz",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "kuzushiji-mnist/train-images-idx3-ubyte": (
        f"{_KUZUSHIJI}/train-images-idx3-ubyte.gz",
        "md5:bdb82020997e1d708af4cf47b453dcf7",
    ),
    "kuzushiji-mnist/train-labels-idx1-ubyte": (
        f"{_KUZUSHIJI}/train-labels-idx1-ubyte.gz",
        "md5:e144d726b3acfaa3e44228e80efcd344",
    ),
    "kuzushiji-mnist/t10k-images-idx3-ubyte": (
        f"{_KUZUSHIJI}/t10k-images-idx3-ubyte.gz",
        "md5:5c965bf0a639b31b8f53240b1b52f4d7",
    ),
    "kuzushiji-mnist/t10k-labels-idx1-ubyte": (
        f"{_KUZUSHIJI}/t10k-labels-idx1-ubyte.gz",
        "md5:7320c461ea6c1c855c0b718fb2a4b134",
    ),
    "svhn/train_32x32.mat": (f"{_SVHN}/train_32x32.mat", "md5:e26dedcc434d2e4c54c9b2d4a06d8373"),
    "svhn/test_32x32.mat": (f"{_SVHN}/test_32x32.mat", "md5:eb5a983be6a315427106f1b164d9cef3"),
    "cifar10h/cifar10h-probs.npy": (
        f"{_CIFAR10H}/cifar10h-probs.npy",
        "436ae98620e00073f9d08585ac870573b588853e7af9f54eb1647408114af77d",
    ),
}

#: Address of each archive, and the published md5 of each of its files that is used.
ARCHIVES: dict[str, tuple[str, dict[str, str]]] = {
    "cifar10": (
        f"{_CIFAR}/cifar-10-python.tar.gz",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
    ),
    "cifar100": (
        f"{_CIFAR}/cifar-100-python.tar.gz",
        {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    ),
}
