"""The host can be imported beside the tests, and writes nothing into its own folders."""

import importlib


def test_the_host_imports_on_the_cpu(in_process_host):
    import comfy.model_management
    import comfy.sd

    assert comfy.model_management.get_torch_device().type == "cpu"
    assert callable(comfy.sd.load_checkpoint_guess_config)
    nodes = importlib.import_module("nodes")  # the host's, not this pack's folder of that name
    assert "CheckpointLoaderSimple" in nodes.NODE_CLASS_MAPPINGS


def test_what_nodes_save_goes_to_the_test_folder(in_process_host):
    paths = in_process_host.folder_paths
    assert paths.get_folder_paths("loras")[0] == str(in_process_host.models / "loras")
    assert paths.get_output_directory() == str(in_process_host.output)
