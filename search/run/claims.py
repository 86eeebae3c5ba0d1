"""What sweeps that share a cluster note of themselves for each other to read."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Note(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Held(_Note):
    """What workers hold in one place.

    Attributes:
        node: Ray's name of the node.
        gpus: The GPUs there, one for a share of it.
        cpu: CPUs, of all these workers together.
        gpu: GPUs likewise.
    """

    node: str
    gpus: tuple[str, ...] = ()
    cpu: float = Field(ge=0)
    gpu: float = Field(0.0, ge=0)


class Reservation(_Note):
    """A place for one run that waits.

    Attributes:
        node: Ray's name of the node.
        gpus: The GPUs there.
        needs: GPUs and CPUs of the run.
        cpu: CPUs that must be given up on the node, beside those of workers on the GPUs.
        gpu: GPUs that must be given up.
        since: When the place was chosen, in seconds since 1970.
        by: Name of the driver.
        number: Another one whenever this has been said anew.
    """

    node: str
    gpus: tuple[str, ...] = ()
    needs: tuple[float, float]
    cpu: float = 0.0
    gpu: float = 0.0
    since: float
    by: str = ""
    number: int = 0


class Claim(_Note):
    """What a driver notes on the board.

    Attributes:
        beat: Another number each time.
        cpu: CPUs that it holds in all.
        gpu: GPUs likewise.
        waits: Whether one of its runs waits for room.
        places: What it holds where, of the workers that have said where they are.
        reserved: Places of runs that it is entitled to.
    """

    beat: int
    cpu: float = 0.0
    gpu: float = 0.0
    waits: bool = False
    places: tuple[Held, ...] = ()
    reserved: tuple[Reservation, ...] = ()
