"""MMRazor's configurable distiller, with maps that every loss and connector can take."""

from typing import Any

from mmrazor.models import ConfigurableDistiller as _ConfigurableDistiller
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..registry import MODELS


def for_module(module: nn.Module, value: Any) -> Any:
    """Bring what a loss or a connector is given into the layout that it takes.

    Maps are not always contiguous: those of a head on a transformer are channels last, and so are
    those of a model that computes so. Most losses and connectors call ``view``, which then fails.

    Args:
        module (nn.Module): The loss or connector. One whose attribute ``any_layout`` is True, as that
            of our own, gets the value as it is: they read channels last where it lies, which costs
            less than a copy of both maps.
        value (Any): A tensor, or whatever holds tensors.

    Returns:
        Any: The same, its tensors contiguous; not copied where they were.
    """
    if getattr(module, 'any_layout', False):
        return value
    return tree_map_only(Tensor, Tensor.contiguous, value)


@MODELS.register_module(name='ConfigurableDistiller', force=True)
class ConfigurableDistiller(_ConfigurableDistiller):
    """MMRazor's ``ConfigurableDistiller``, in its place: losses and connectors get contiguous maps.

    Everything else is MMRazor's: see there for the arguments.
    """

    def get_record(
        self,
        recorder: str,
        from_student: bool,
        record_idx: int = 0,
        data_idx: int | None = None,
        connector: str | None = None,
        connector_idx: int | None = None,
    ) -> Any:
        """Give what a recorder holds, behind its connector if there is one.

        Args:
            recorder (str): Name of the recorder.
            from_student (bool): Whether it is one of the student's.
            record_idx (int): Which of its records, if its source runs several times.
            data_idx (int, optional): Index into the record if that is a tuple or list.
            connector (str, optional): Name of the connector.
            connector_idx (int, optional): Index into what the connector gives.

        Returns:
            Any: The record; a tensor as a rule.
        """
        record = super().get_record(recorder, from_student, record_idx, data_idx)
        if connector:
            module = self.connectors[connector]
            record = module(for_module(module, record))
        return record if connector_idx is None else record[connector_idx]

    def compute_distill_losses(self) -> dict[str, Tensor]:
        """Compute the losses of ``loss_forward_mappings`` from what the recorders hold.

        Returns:
            dict[str, Tensor]: The losses by name.
        """
        losses = {}
        for name, mappings in self.loss_forward_mappings.items():
            loss = self.distill_losses[name]
            losses[name] = loss(
                **{key: for_module(loss, self.get_record(**m)) for key, m in mappings.items()}
            )
        return losses
