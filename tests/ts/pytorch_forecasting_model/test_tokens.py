"""The map from covariates to tokens: what each period sees of them."""

import pytest
import torch
from pytorch_forecasting.models.nn import MultiEmbedding

from xlstm_ts.pytorch_forecasting_model.tokens import CovariateTokens

B, S, D = 2, 3, 8
X_REALS, X_CATEGORICALS = ["sales", "price", "unused"], ["shop", "easter", "christmas", "weather"]
SEEN = {"encoder": ["shop", "holiday", "weather", "sales", "price"], "decoder": ["shop", "holiday", "price"]}


def make_tokens() -> CovariateTokens:
    torch.manual_seed(0)
    embeddings = MultiEmbedding(
        {"shop": (3, 2), "holiday": (3, 2), "weather": (2, 1)},
        x_categoricals=X_CATEGORICALS,
        categorical_groups={"holiday": ["easter", "christmas"]},
    )
    return CovariateTokens(embeddings, x_reals=X_REALS, seen=SEEN, hidden_size=D, dropout=0.0)


@pytest.mark.parametrize("period", ["encoder", "decoder"])
def test_a_token_depends_on_what_its_period_sees_alone(period: str) -> None:
    tokens = make_tokens()
    reals, categoricals = torch.randn(B, S, len(X_REALS)), torch.zeros(B, S, len(X_CATEGORICALS), dtype=torch.long)
    before = tokens(reals, categoricals, period)
    assert before.shape == (B, S, D)
    groups = {"easter": "holiday", "christmas": "holiday"}
    for name in X_REALS + X_CATEGORICALS:
        more_reals, more_categoricals = reals.clone(), categoricals.clone()
        if name in X_REALS:
            more_reals[..., X_REALS.index(name)] += 1.0
        else:
            more_categoricals[..., X_CATEGORICALS.index(name)] = 1
        changed = not torch.equal(tokens(more_reals, more_categoricals, period), before)
        assert changed == (groups.get(name, name) in SEEN[period]), name


def test_the_same_covariates_give_other_tokens_to_the_decoder() -> None:
    tokens = make_tokens()
    reals, categoricals = torch.zeros(B, S, len(X_REALS)), torch.zeros(B, S, len(X_CATEGORICALS), dtype=torch.long)
    with torch.no_grad():
        tokens.embeddings["weather"].weight.zero_()
    assert not torch.allclose(tokens(reals, categoricals, "encoder"), tokens(reals, categoricals, "decoder"))


def test_a_step_without_any_covariate_has_a_token() -> None:
    tokens = CovariateTokens(
        MultiEmbedding({}, x_categoricals=[]),
        x_reals=["sales"],
        seen={"encoder": ["sales"], "decoder": []},
        hidden_size=D,
        dropout=0.0,
    )
    assert tokens(torch.zeros(B, S, 1), torch.zeros(B, S, 0, dtype=torch.long), "decoder").isfinite().all()
