"""Options of transfers: documentation fragment, shared argument spec and the modules say the same."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from support.module_runner import load

fragment = load("doc_fragments.transfer").ModuleDocFragment
sections = load("module_utils._transfer.options").SECTIONS
MODULES = ["databundle", "runtime_conda", "runtime_image", "runtime_sif"]


def documented(section: str) -> dict[str, Any]:
    """Options that a section of the fragment documents."""
    options: dict[str, Any] = yaml.safe_load(getattr(fragment, section))["options"]
    return options


def bare(options: dict[str, Any]) -> dict[str, Any]:
    """What documentation and argument spec must agree on."""
    return {
        name: {key: option[key] for key in ("type", "elements", "choices", "required", "default") if key in option}
        for name, option in options.items()
    }


class Built(Exception):
    """An AnsibleModule was about to be built; `spec` is its argument spec."""

    def __init__(self, argument_spec: dict[str, Any]) -> None:
        super().__init__()
        self.spec = argument_spec


def spec_of(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Argument spec that module `name` gives to Ansible."""

    def stop(argument_spec: dict[str, Any], **_unused: Any) -> None:
        raise Built(argument_spec)

    module = load(f"modules.{name}")
    monkeypatch.setattr(module, "AnsibleModule", stop)
    with pytest.raises(Built) as built:
        module.main()
    return built.value.spec


def test_fragment_and_spec_have_the_same_sections() -> None:
    assert {name for name in vars(fragment) if name.isupper()} == set(sections)


@pytest.mark.parametrize("section", sections)
def test_fragment_and_spec_say_the_same(section: str) -> None:
    assert bare(documented(section)) == bare(sections[section])


@pytest.mark.parametrize("name", MODULES)
def test_a_module_documents_what_it_takes_and_no_shared_option_itself(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = yaml.safe_load(load(f"modules.{name}").DOCUMENTATION)
    extended = [one for one in document["extends_documentation_fragment"] if one.startswith("umccr.pcgr.transfer")]
    used = ["DOCUMENTATION" if one.count(".") == 2 else one.rpartition(".")[2].upper() for one in extended]
    shared = {option: value for section in used for option, value in documented(section).items()}
    assert not shared.keys() & document["options"].keys()
    assert bare(shared | document["options"]) == bare(spec_of(name, monkeypatch))


def test_presigned_urls_are_never_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(spec_of(name, monkeypatch)["signed"]["no_log"] is True for name in MODULES)
