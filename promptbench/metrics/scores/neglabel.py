"""NegLabel: how much of the softmax over the classes and many negative labels falls on the classes.

Jiang et al., "Negative Label Guided OOD Detection with Pretrained Vision-Language Models", ICLR 2024, arXiv:2403.20078.
Code by the authors: https://github.com/XueJiang16/NegLabel

    S(x) = mean_g  sum_c exp(s_c / t) / ( sum_c exp(s_c / t) + sum_{n in group g} exp(s_n / t) )

with s_c the cosine of image and class c, s_n that of negative label n, and t the temperature. Negative labels are words
of a list that the user gives, such as WordNet's nouns: of every word the similarities to the classes are taken, of
these the quantile `percentile`, and the share of words where it is smallest is kept, nouns and adjectives apart. They
are dealt out at random to groups of equal size; what is left over, the most similar ones, is dropped.

Differs from it: the score is of any method. Its classes' cosines are those of the method, so that `zeroshot` with the
template "The nice {}." gives the authors' score; negative labels, and the classes that they are chosen against, are
encoded by frozen CLIP in the authors' templates. Words that read like a class are left out. Groups are drawn by another
generator. The authors take WordNet without people, quantities, groups and some adjectives; none comes with promptbench.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.config import UsageError
from promptbench.data.class_names import ClassNames, as_read
from promptbench.metrics.ood import Score, cosines_with

_CONFIG = "authors' custom_config/clip.py"
_ADJECTIVE = "This is a {} photo"
AT_ONCE = 1000  # words whose tokens are held


class NegLabel(Score):
    """Softmax mass on the classes beside negative labels."""

    title = "NegLabel"
    needs = ("cosines", "negatives")

    @dataclass(frozen=True, kw_only=True)
    class Config(Score.Config):
        """Defaults are those of the authors' ImageNet experiments."""

        words: str = field(default="", metadata={"source": "a file of your own with nouns, one a line", "file": True})
        adjectives: str = field(
            default="", metadata={"source": "likewise, of adjectives; may be left out", "file": True}
        )
        share: float = field(default=0.15, metadata={"source": f"{_CONFIG}, neg_topk; of the words that are kept"})
        percentile: float = field(default=0.95, metadata={"source": f"{_CONFIG}, pencentile; of the similarities"})
        groups: int = field(default=100, metadata={"source": f"{_CONFIG}, ngroup"})
        temperature: float = field(default=0.01, metadata={"source": f"{_CONFIG}, t, over their factor 100"})
        template: str = field(default="The nice {}.", metadata={"source": f"{_CONFIG}, prompt_idx_neg"})
        seed: int = field(default=0, metadata={"source": "authors' clip_ood.py; deals negative labels out to groups"})

        def __post_init__(self) -> None:
            if not self.words:
                raise UsageError("it needs a file of words, one a line, for instance neglabel.words=nouns.txt.")
            if not (0 < self.share <= 1 and 0 <= self.percentile <= 1):
                raise UsageError(f"'share' and 'percentile' go up to 1, not {self.share} and {self.percentile}.")
            if self.temperature <= 0 or self.groups < 1 or self.seed < 0:
                raise UsageError("'temperature' is above 0, 'groups' at least 1 and 'seed' at least 0.")
            ClassNames((), template=self.template)  # refuses what names no place for the word

    def negative_features(self, names: ClassNames, backbone: Backbone) -> Tensor:
        classes = encoded(backbone, self.config.template, names)
        found = []
        for setting, template in (("words", self.config.template), ("adjectives", _ADJECTIVE)):
            words = listed(self.files[setting], names)
            if words:
                texts = encoded(backbone, template, words)
                found.append(texts[least_similar(texts, classes, self.config.share, self.config.percentile)])
        if not found:
            raise UsageError(f"score '{self.name}': {self.config.words} holds no word that is not a class.")
        return torch.cat(found)

    def of(self, cosines: Tensor, negatives: Tensor) -> Tensor:
        classes = (cosines.float() / self.config.temperature).logsumexp(dim=-1, keepdim=True)  # (B, 1)
        others = (negatives.float() / self.config.temperature)[:, self.deal(negatives.shape[1]).to(negatives.device)]
        return torch.sigmoid(classes - others.logsumexp(dim=-1)).mean(dim=-1)  # (B, groups), then (B,)

    def deal(self, count: int) -> Tensor:
        """Positions of the negative labels in each group, (groups, labels of a group); fewer groups of few labels."""
        groups = min(self.config.groups, count)
        kept = count - count % groups
        generator = torch.Generator().manual_seed(self.config.seed)
        return torch.randperm(kept, generator=generator).view(groups, -1)


def encoded(backbone: Backbone, template: str, words: Sequence[str]) -> Tensor:
    """What frozen CLIP says of words in a template, (N, D), normalised."""
    starts = range(0, len(words), AT_ONCE)
    parts = [prompts.FrozenTexts(backbone, (template,), words[start : start + AT_ONCE]).features() for start in starts]
    return torch.cat(parts)


def listed(text: str, names: Sequence[str]) -> list[str]:
    """The words of a list, each once, without those that read like a class name."""
    classes = {as_read(name) for name in names}
    words = dict.fromkeys(line.strip() for line in text.splitlines())
    return [word for word in words if as_read(word) and as_read(word) not in classes]


def least_similar(words: Tensor, classes: Tensor, share: float, percentile: float) -> Tensor:
    """Positions of the share of words (N, D), at least one, that are least similar to the classes (K, D), in order."""
    parts = [cosines_with(part, classes).quantile(percentile, dim=-1) for part in words.split(AT_ONCE)]
    return torch.cat(parts).argsort(stable=True)[: max(1, int(len(words) * share))]
