"""Losses held to their contract: ``check_loss`` for any author of a loss, and a comparison with TRL."""

from prefopt.testing.checks import ContractError, check_loss, contract_failures

__all__ = ["ContractError", "check_loss", "contract_failures"]
