"""Other file servers: applications of Starlette and of zarr-http-server.

They run in a Python that has these packages, which may be another one, so nothing of ours is
imported. The variable ``SERVED`` names the folder, which is served below ``/zarr/one/`` as by our
server.
"""

import os
from typing import Any

FOLDER = os.environ["SERVED"]
BELOW = "/zarr/one"


def file_response() -> Any:  # noqa: ANN401  of Starlette, where that is installed
    """Answer with ``FileResponse``, like a user's own application."""
    from starlette.applications import Starlette  # noqa: PLC0415
    from starlette.requests import Request  # noqa: PLC0415
    from starlette.responses import FileResponse  # noqa: PLC0415
    from starlette.routing import Route  # noqa: PLC0415

    async def answer(request: Request) -> FileResponse:
        return FileResponse(f"{FOLDER}/{request.path_params['key']}")

    return Starlette(routes=[Route(f"{BELOW}/{{key:path}}", answer)])


def static_files() -> Any:  # noqa: ANN401  as above
    """Answer with ``StaticFiles``."""
    from starlette.applications import Starlette  # noqa: PLC0415
    from starlette.routing import Mount  # noqa: PLC0415
    from starlette.staticfiles import StaticFiles  # noqa: PLC0415

    return Starlette(routes=[Mount(BELOW, StaticFiles(directory=FOLDER))])


def zarr_http_server() -> Any:  # noqa: ANN401  as above
    """Answer with the server of the Zarr project."""
    from starlette.applications import Starlette  # noqa: PLC0415
    from starlette.routing import Mount  # noqa: PLC0415
    from zarr.storage import LocalStore  # noqa: PLC0415
    from zarr_http_server import store_app  # noqa: PLC0415

    return Starlette(routes=[Mount(BELOW, store_app(LocalStore(FOLDER, read_only=True)))])
