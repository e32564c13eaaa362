"""A contract type for import-linter: what a set of modules may import, everything else being forbidden.

The contract types that come with import-linter name what is forbidden, so that a module which is added later is allowed
until somebody thinks of it. A rule such as "the kernel is pure" has to fail closed. Used by pyproject.toml; knows
nothing of aetherscale.
"""

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output
from importlinter.domain.helpers import module_expressions_to_modules


class AllowedImports(Contract):
    """The importers import one another, `may_import` and `may_use`, and nothing else.

    Only direct imports are looked at. Packages stand for all that is in them. Names may hold the wildcards of
    import-linter, which may match nothing; an importer without a wildcard has to exist.

    Options:
        importers: modules of this project that the rule is about.
        may_import: other modules of this project that they may import.
        may_use: libraries, the standard one included, that they may import; left out, they may import any.
    """

    type_name = "allowed"

    importers = fields.SetField(subfield=fields.ModuleExpressionField())
    may_import = fields.SetField(subfield=fields.ModuleExpressionField())
    may_use = fields.SetField(subfield=fields.StringField(), required=False)

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Look at every direct import of the importers.

        Raises ValueError when the contract names, without a wildcard, a module that does not exist.
        """
        importers = self._modules(graph, "importers", must_exist=True)
        allowed = importers | self._modules(graph, "may_import")
        libraries: set[str] | None = getattr(self, "may_use")  # noqa: B009 - the class says Field, an instance has a set
        allowed |= {module for module in graph.modules if not self._is_ours(module)} if libraries is None else libraries
        illegal = [
            (importer, imported)
            for importer in sorted(importers)
            for imported in sorted(graph.find_modules_directly_imported_by(importer) - allowed)
        ]
        return ContractCheck(kept=not illegal, metadata={"illegal": illegal, "graph": graph})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print one line for each import that is not allowed."""
        graph = check.metadata["graph"]
        for importer, imported in check.metadata["illegal"]:
            details = graph.get_import_details(importer=importer, imported=imported)
            lines = ", ".join(f"l.{detail['line_number']}" for detail in details)
            output.print_error(f"- {importer} -> {imported} ({lines})", bold=False)
        output.new_line()

    def _modules(self, graph: ImportGraph, option: str, *, must_exist: bool = False) -> set[str]:
        expressions = getattr(self, option)
        absent = {e for e in expressions if not e.has_wildcard_expression() and e.expression not in graph.modules}
        if absent and must_exist:
            raise ValueError(f"{option} of the contract {self.name!r}: no such module: {', '.join(map(str, absent))}")
        return {module.name for module in module_expressions_to_modules(graph, expressions - absent, as_packages=True)}

    def _is_ours(self, module: str) -> bool:
        return module.partition(".")[0] in self.session_options["root_packages"]
