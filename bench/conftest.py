import bptt


def pytest_report_header() -> list[str]:
    return [f"{name}: {value}" for name, value in bptt.info().items()]
