"""What training begins with, found before the first gradient step: the network then learns how to do better."""

import copy

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from xlstm_ts.linear_map import fit_linear_map
from xlstm_ts.network import ForecastNetwork
from xlstm_ts.preferences import best_preferences, mix, read_offers
from xlstm_ts.windows import Windows


def find_start(
    network: ForecastNetwork, training: DataLoader[Windows], held_out: DataLoader[Windows] | None, *, unit: str
) -> dict[str, Tensor]:
    """Plain weights, which answer every state with the linear map, solved for, where there is one, or the best mixture.

    Args:
        network: what is to be trained. With a map it gets these weights; else it only prefers the mixture, and keeps
            the random weights of its last layer: M4 Hourly is learned worse from none.
        training: windows that train it.
        held_out: windows that choose the map's strength, or None.
        unit: of the map's errors, as in ``TrainingConfig.loss_unit``.

    Returns:
        All weights by name, with intervals as wide as the errors on training windows.
    """
    candidates, decoder = network.cpu().candidates, network.decoder
    if network.config.linear_lookback:
        candidates.linear_map.copy_(fit_linear_map(training, held_out, network, unit=unit))
    offers = read_offers(network, training.dataset)
    preferences = best_preferences(network, offers)
    errors = (offers.target - mix(preferences, offers.values, offers.available))[offers.came]
    outputs = network.head.outputs_for(errors) if len(errors) > 1 else torch.zeros(network.head.num_outputs)
    decoder.prefer(preferences)
    plain = copy.deepcopy(decoder)
    plain.begin(preferences, outputs)
    if network.config.linear_lookback:
        decoder.load_state_dict(plain.state_dict())
    return network.state_dict() | {f"decoder.{name}": tensor for name, tensor in plain.state_dict().items()}
