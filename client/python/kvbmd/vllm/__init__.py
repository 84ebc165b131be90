# SPDX-License-Identifier: Apache-2.0
# mypy: ignore-errors
"""vLLM's KV cache kept in kvbmd: shared by all engines of a machine, and there after their restarts.

    vllm serve MODEL --kv-transfer-config '{"kv_connector":"KvbmdConnector","kv_role":"kv_both"}'

Installing the package is enough for that: vLLM finds register() by its entry point.  Where VLLM_PLUGINS keeps it from looking, name the module:
"kv_connector_module_path": "kvbmd.vllm".  See KvbmdConnector for the options.
"""

__all__ = ["KvbmdConnector", "register"]


def register():
    """What vLLM calls in each of its processes, any number of times.  Raises nothing: a plugin must not keep an engine from starting."""
    try:
        from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

        KVConnectorFactory.register_connector("KvbmdConnector", "kvbmd.vllm.connector", "KvbmdConnector")
    except ValueError:
        pass  # again
    except Exception as error:  # a vLLM that has no such factory
        import logging

        logging.getLogger("kvbmd.vllm").warning("kvbmd: this vLLM takes no connectors: %r", error)


def __getattr__(name):
    if name == "KvbmdConnector":
        from .connector import KvbmdConnector

        return KvbmdConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
