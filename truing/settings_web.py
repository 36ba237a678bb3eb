"""The settings of the labelling app."""

from pydantic import Field

from truing.settings import CommandTopic
from truing.settings_collect import LedgerTopic


class ServeConfig(LedgerTopic, CommandTopic):
    """Serve: the pages for people who judge, and for those who lead them"""

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. The default is for this computer alone; 0.0.0.0 is for "
        "all that reach it, and needs TLS.",
    )
    port: int = Field(7117, ge=0, le=65535, description="Port. 0: any that is free.")
    workers: int = Field(
        1,
        ge=1,
        description="Processes. With several, failed sign-ins are counted by each of them alone.",
    )
    ssl_certfile: str | None = Field(
        None, description="File of the TLS certificate, in PEM. None: no TLS here."
    )
    ssl_keyfile: str | None = Field(None, description="File of its private key, in PEM.")
    behind_tls: bool = Field(
        False,
        description="Whether a proxy in front of it speaks TLS with the browsers; cookies then "
        "need TLS, and the proxy's word about clients' addresses is taken.",
    )
