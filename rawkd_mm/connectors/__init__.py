"""Connectors of features, registered in MMRazor's MODELS."""

from .global_context_connector import GlobalContextConnector

__all__ = ['GlobalContextConnector']
