"""What plugins import of `promptbench.data.dataset`, at the path that they have always used."""

from promptbench.data.dataset import Dataset, DatasetInfo, Download, Sources, data_roots, open_dataset

__all__ = ["Dataset", "DatasetInfo", "Download", "Sources", "data_roots", "open_dataset"]
