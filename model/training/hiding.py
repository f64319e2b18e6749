"""What training hides from the model besides histories and positions (`model.training.batches`): ids, columns, hidden units."""

from __future__ import annotations

from model.config import ConfigError
from model.layers.dropout import set_hidden_dropout
from model.layers.embedding import InputDropout
from model.ranker import KunlunRanker
from model.training.config import AugmentConfig


def input_dropout(model: KunlunRanker, augment: AugmentConfig) -> InputDropout:
    """Set the dropout of hidden units and return that of inputs; raises `ConfigError` for a rate of what is not there."""
    tables = model.tables.names
    for name in augment.table_id_dropout:
        if name not in tables:
            raise ConfigError(
                f"augment.table_id_dropout: expected names of embedding tables ({', '.join(tables)}), found {name!r}"
            )
    if not set_hidden_dropout(model, augment.hidden_dropout) and augment.hidden_dropout:
        raise ConfigError(
            f"augment.hidden_dropout: expected 0, since this architecture has no place for it, found {augment.hidden_dropout}"
        )
    rates = {name: augment.table_id_dropout.get(name, augment.id_dropout) for name in tables}
    return InputDropout(rates, augment.embedding_dropout)
