"""The model of pytorch-forecasting: what a forecast depends on, what it learns, what comes back from a checkpoint."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from pytorch_forecasting import Baseline, GroupNormalizer, NormalDistributionLoss, QuantileLoss
from pytorch_forecasting.data import MultiNormalizer, NaNLabelEncoder
from pytorch_forecasting.data.timeseries import TimeSeriesDataSet
from pytorch_forecasting.metrics import MAE, CrossEntropy, MultiLoss
from torch import Tensor

from xlstm_ts import xLSTMModel

from .panels import HORIZON, first_batch, make_dataset, make_model, make_panel, select_row

QUIET: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_model_summary": False}


def forecast(model: xLSTMModel, x: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(x).prediction


def test_a_forecast_does_not_depend_on_batch_mates() -> None:
    dataset = make_dataset()
    model, (x, _) = make_model(dataset), first_batch(dataset)
    together = forecast(model, x)
    assert x["encoder_lengths"].unique().numel() > 3
    for row in range(len(together)):
        alone = forecast(model, select_row(x, row))  # a batch of 1
        torch.testing.assert_close(alone, together[[row]])


def test_a_forecast_does_not_depend_on_what_padding_holds() -> None:
    dataset = make_dataset()
    model, (x, _) = make_model(dataset), first_batch(dataset)
    padding = torch.arange(x["encoder_cont"].shape[1]) >= x["encoder_lengths"][:, None]
    assert padding.any()
    filled = {
        **x,
        "encoder_cont": x["encoder_cont"].masked_fill(padding[..., None], torch.nan),
        "encoder_cat": x["encoder_cat"].masked_fill(padding[..., None], 1),
    }
    torch.testing.assert_close(forecast(model, filled), forecast(model, x), rtol=0, atol=0)


def test_a_forecast_needs_no_history() -> None:
    dataset = make_dataset()
    model, (x, _) = make_model(dataset), first_batch(dataset)
    assert (x["encoder_lengths"] == 0).any()
    assert forecast(model, x).isfinite().all()


def test_a_forecast_depends_on_the_history() -> None:
    dataset = make_dataset()
    model, (x, _) = make_model(dataset), first_batch(dataset)
    changed = {**x, "encoder_cont": x["encoder_cont"] + 1.0}
    same = (forecast(model, changed) == forecast(model, x)).all(dim=(1, 2))
    assert torch.equal(same, x["encoder_lengths"] == 0)


def test_a_longer_horizon_leaves_the_nearer_steps_as_they_are() -> None:
    model = make_model(make_dataset())
    further = make_dataset(max_prediction_length=3 * HORIZON, min_prediction_length=3 * HORIZON)
    x, _ = first_batch(further)
    nearer = {name: values[:, :HORIZON] if "decoder_c" in name else values for name, values in x.items()}
    torch.testing.assert_close(forecast(model, x)[:, :HORIZON], forecast(model, nearer))


def test_known_covariates_reach_their_step_and_later_ones_alone() -> None:
    dataset = make_dataset()
    model, (x, _) = make_model(dataset), first_batch(dataset)
    step, price = 2, dataset.reals.index("price")
    changed = {**x, "decoder_cont": x["decoder_cont"].clone()}
    changed["decoder_cont"][:, step, price] += 1.0
    same = (forecast(model, changed) == forecast(model, x)).all(dim=(0, 2))
    assert same.tolist() == [True, True, False, False]


def test_nothing_unknown_about_the_future_is_read() -> None:
    dataset = make_dataset()
    model, (x, _) = make_model(dataset), first_batch(dataset)
    changed = {**x, "decoder_cont": x["decoder_cont"].clone(), "decoder_cat": x["decoder_cat"].clone()}
    for name in ("sales", "visitors"):
        changed["decoder_cont"][..., dataset.reals.index(name)] = torch.nan
    weather = changed["decoder_cat"][..., dataset.flat_categoricals.index("weather")]
    weather.copy_(1 - weather)
    torch.testing.assert_close(forecast(model, changed), forecast(model, x), rtol=0, atol=0)


def test_covariates_kept_from_the_encoder_are_not_read_there() -> None:
    dataset = make_dataset()
    model = make_model(dataset, allowed_encoder_known_variable_names=["month", "holiday"])
    x, _ = first_batch(dataset)
    changed = {**x, "encoder_cont": x["encoder_cont"].clone()}
    changed["encoder_cont"][..., dataset.reals.index("price")] = 100.0
    torch.testing.assert_close(forecast(model, changed), forecast(model, x), rtol=0, atol=0)


def test_every_parameter_receives_a_gradient() -> None:
    dataset = make_dataset(target=["sales", "returns"], target_normalizer="auto")
    model = make_model(dataset).train()
    x, y = first_batch(dataset)
    model.loss(model(x).prediction, y).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize(
    ("targets", "losses", "sizes"),
    [
        (["sales", "returns"], None, [7, 7]),  # quantiles, by default
        (["sales", "returns"], [MAE(), NormalDistributionLoss()], [1, 4]),
        (["sales", "weather"], [QuantileLoss([0.1, 0.5, 0.9]), CrossEntropy()], [3, 2]),
    ],
)
def test_each_target_has_its_own_loss(targets: list[str], losses: list[Any] | None, sizes: list[int]) -> None:
    normalizers = [NaNLabelEncoder() if name == "weather" else GroupNormalizer(groups=[]) for name in targets]
    dataset = make_dataset(target=targets, target_normalizer=MultiNormalizer(normalizers))
    options = {} if losses is None else {"loss": MultiLoss(losses)}
    model, (x, y) = make_model(dataset, **options), first_batch(dataset)
    predictions = model(x).prediction
    assert [tuple(p.shape) for p in predictions] == [(16, HORIZON, size) for size in sizes]
    assert model.loss(predictions, y).isfinite()


def test_an_unknown_category_is_read_as_the_label_for_unknowns() -> None:
    dataset = make_dataset()
    model = make_model(dataset)
    panel = make_panel(("a", "b", "new"))
    with pytest.warns(UserWarning, match="unknown classes"):
        unknown = TimeSeriesDataSet.from_dataset(dataset, panel[panel["shop"] == "new"], predict=True)
    x, _ = next(iter(unknown.to_dataloader(train=False, num_workers=0)))
    assert (x["encoder_cat"][..., unknown.flat_categoricals.index("shop")] == 0).all()
    assert not model.tokens.embeddings["shop"].weight[0].any()  # no untrained numbers stand for it
    assert forecast(model, x).isfinite().all()


def test_a_checkpoint_brings_back_the_model(tmp_path: Path) -> None:
    dataset = make_dataset()
    model = make_model(dataset, slstm_at=(1,), loss=NormalDistributionLoss(), learning_rate=0.01).train()
    trainer = pl.Trainer(max_steps=2, default_root_dir=tmp_path, enable_progress_bar=False, **QUIET)
    trainer.fit(model, dataset.to_dataloader(batch_size=8, num_workers=0))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = xLSTMModel.load_from_checkpoint(tmp_path / "model.ckpt")
    x, _ = first_batch(dataset)
    torch.testing.assert_close(forecast(loaded.eval(), x), forecast(model.eval(), x), rtol=0, atol=0)
    for name in ("hidden_size", "slstm_at", "output_size", "static_categoricals", "embedding_sizes", "learning_rate"):
        assert loaded.hparams[name] == model.hparams[name]
    assert isinstance(loaded.loss, NormalDistributionLoss)


@pytest.mark.parametrize("loss", [QuantileLoss(), NormalDistributionLoss()])
def test_predict_gives_points_quantiles_and_raw_outputs(loss: Any) -> None:
    dataset = make_dataset()
    model, panel = make_model(dataset, loss=loss), make_panel()

    def predict(mode: str) -> Any:
        return model.predict(panel, mode=mode, return_x=True, trainer_kwargs=dict(QUIET))

    assert predict("prediction").output.shape == (3, HORIZON)
    quantiles = predict("quantiles").output
    assert quantiles.shape == (3, HORIZON, 7)
    raw = predict("raw")
    figure = model.plot_prediction(raw.x, raw.output, idx=0)
    assert len(figure.axes) > 0


def test_it_learns_what_a_repeated_last_value_cannot_know() -> None:
    dataset = make_dataset()
    model = make_model(dataset, hidden_size=16, learning_rate=0.01).train()
    trainer = pl.Trainer(max_epochs=8, enable_checkpointing=False, enable_progress_bar=False, **QUIET)
    trainer.fit(model, dataset.to_dataloader(batch_size=16, num_workers=0))

    def error(forecaster: Any) -> float:
        held_out = TimeSeriesDataSet.from_dataset(dataset, make_panel(), predict=True)
        predicted = forecaster.predict(held_out, return_y=True, trainer_kwargs=dict(QUIET))
        return float(MAE()(predicted.output, predicted.y))

    assert error(model) < 0.3 * error(Baseline())


def test_monotone_constraints_are_refused() -> None:
    with pytest.raises(ValueError, match="monotone_constraints"):
        make_model(make_dataset(), monotone_constraints={"price": -1})
