"""Where models lie, by kind: folders in order of preference, and the extensions that count."""

from __future__ import annotations

import os
import tempfile

from comfy.cli_args import args

supported_pt_extensions: set[str] = {".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"}

_temporary = tempfile.TemporaryDirectory(prefix="fast-instantid-standin-")  # nothing is written beside this file
base_path = os.path.abspath(args.base_directory or _temporary.name)
models_dir = os.path.join(base_path, "models")
output_directory = os.path.join(base_path, "output")
folder_names_and_paths: dict[str, tuple[list[str], set[str]]] = {
    "checkpoints": ([os.path.join(models_dir, "checkpoints")], supported_pt_extensions),
    "controlnet": ([os.path.join(models_dir, "controlnet")], supported_pt_extensions),
    "custom_nodes": ([os.path.join(base_path, "custom_nodes")], set()),
}
filename_list_cache: dict[str, tuple[list[str], dict[str, float], float]] = {}


def add_model_folder_path(folder_name: str, full_folder_path: str, is_default: bool = False) -> None:
    """Add a folder, as a line of ``extra_model_paths.yaml`` does. A new kind has no extensions: any file counts."""
    paths, _ = folder_names_and_paths.setdefault(folder_name, ([], set()))
    if is_default and full_folder_path in paths:
        paths.remove(full_folder_path)
    if full_folder_path not in paths:
        paths.insert(0 if is_default else len(paths), full_folder_path)


def get_folder_paths(folder_name: str) -> list[str]:
    return list(folder_names_and_paths[folder_name][0])


def get_filename_list(folder_name: str) -> list[str]:
    """Relative paths of the files below all folders of a kind, sorted, with this system's separators."""
    folders, extensions = folder_names_and_paths[folder_name]
    found = {
        os.path.relpath(os.path.join(parent, name), folder)
        for folder in folders
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if not extensions or os.path.splitext(name)[1].lower() in extensions
    }
    return sorted(found)


def get_full_path(folder_name: str, filename: str) -> str | None:
    if folder_name not in folder_names_and_paths:
        return None
    inside = os.path.relpath(os.path.join("/", filename), "/")  # nothing leads out of the folder
    paths = (os.path.join(folder, inside) for folder in get_folder_paths(folder_name))
    return next(filter(os.path.isfile, paths), None)


def get_full_path_or_raise(folder_name: str, filename: str) -> str:
    path = get_full_path(folder_name, filename)
    if path is None:
        raise FileNotFoundError(f"Model in folder '{folder_name}' with filename '{filename}' not found.")
    return path


def get_output_directory() -> str:
    return output_directory


def get_input_directory() -> str:
    return os.path.join(base_path, "input")


def get_temp_directory() -> str:
    return os.path.join(base_path, "temp")


def get_user_directory() -> str:
    return os.path.join(base_path, "user")


def get_save_image_path(
    filename_prefix: str, output_dir: str, image_width: int = 0, image_height: int = 0
) -> tuple[str, str, int, str, str]:
    """Folder, name, number, subfolder and prefix for the next files ``name_00001_...``; makes the folder."""
    subfolder, filename = os.path.split(os.path.normpath(filename_prefix))
    folder = os.path.join(output_dir, subfolder)
    if os.path.commonpath((output_dir, os.path.abspath(folder))) != output_dir:
        raise Exception("Saving image outside the output folder is not allowed.")
    os.makedirs(folder, exist_ok=True)
    numbers = (
        name.removeprefix(f"{filename}_").split("_")[0]
        for name in os.listdir(folder)
        if name.startswith(f"{filename}_")
    )
    counter = max((int(number) for number in numbers if number.isdigit()), default=0) + 1
    return folder, filename, counter, subfolder, filename_prefix
