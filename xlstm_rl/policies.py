"""The policies by SB3's names: they differ in the features extractor alone."""

from typing import Any

from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN

from xlstm_rl.mlp_policy import MlpPolicy

__all__ = ["CnnPolicy", "MlpPolicy", "MultiInputPolicy"]


class CnnPolicy(MlpPolicy):
    """``MlpPolicy`` for images: the features extractor is SB3's ``NatureCNN``."""

    def __init__(
        self, *args: Any, features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN, **kwargs: Any
    ) -> None:
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)


class MultiInputPolicy(MlpPolicy):
    """``MlpPolicy`` for dictionaries of observations: the features extractor is SB3's ``CombinedExtractor``."""

    def __init__(
        self, *args: Any, features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor, **kwargs: Any
    ) -> None:
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)
