"""What training begins with, found before the first gradient step: the network then learns how to do better."""

import torch
from torch.utils.data import DataLoader

from xlstm_ts.linear_map import fit_linear_map
from xlstm_ts.network import ForecastNetwork
from xlstm_ts.preferences import best_preferences, mix, read_offers
from xlstm_ts.windows import Windows


def find_start(
    network: ForecastNetwork, training: DataLoader[Windows], held_out: DataLoader[Windows] | None, *, unit: str
) -> None:
    """Begin with the linear map, solved for, where there is one, else the best mixture of the past; and its errors.

    Args:
        network: what is to be trained.
        training: windows that train it.
        held_out: windows that choose the map's strength, or None.
        unit: of the map's errors, as in ``TrainingConfig.loss_unit``.
    """
    candidates = network.cpu().candidates
    if network.config.linear_lookback:
        candidates.linear_map.copy_(fit_linear_map(training, held_out, network.config, unit=unit))
    offers = read_offers(network, training.dataset)
    preferences = best_preferences(network, offers)
    errors = (offers.target - mix(preferences, offers.values, offers.available))[offers.came]
    outputs = network.head.outputs_for(errors) if len(errors) > 1 else torch.zeros(network.head.num_outputs)
    network.decoder.begin(preferences, outputs)
