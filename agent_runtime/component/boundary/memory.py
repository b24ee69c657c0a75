"""Where a value of the library is, and what is in it.

A value in the library's memory has 32 bytes: its kind in the first, its content from the eighth on,
three words at most. What follows from that is all the layout there is:

| kind | content, in words |
|---|---|
| a number, a bool, a char | itself |
| string, enum | size, address of the text |
| list, tuple | size, address of the values |
| record | size, address of the fields: name (size, address), then the value |
| flags | size, address of the names (size, address) |
| option | address of the value, or 0 |
| result | whether it is *ok*, address of the value, or 0 |
| variant | size and address of the case's name, address of the value, or 0 |
| resource | address of what stands for it |

Memory is read and written through `MEMORY`, an array that is the whole address space: what makes
bulk transfer possible is that Python slices it with a stride. Nothing checks these addresses, so a
plan only ever meets values of its own type: the type of a function is compared with what the
component says, for an export when it is bound, for an import when it is first called.
"""

from ctypes import c_char, c_void_p
from struct import Struct
from typing import Any, Final

from agent_runtime.component import library

MEMORY: Final[Any] = (c_char * ((1 << 47) - 1)).from_address(0)

VALUE_BYTES: Final = 32
FIELD_BYTES: Final = 48
NAME_BYTES: Final = 16

words_at: Final = Struct("=8xQQQ").unpack_from
"""The content of a value."""
put_list: Final = Struct("=QQ").pack_into
"""The size and the address of a list, eight bytes into its value."""


def library_function(name: str, result: Any, *arguments: Any) -> Any:
    """A function of the C interface that takes addresses as integers, which is several times as
    fast as pointers. Its own object: the library's have other types."""
    function = library.C.dll[name]
    function.restype = result
    function.argtypes = arguments
    return function


delete_value: Final = library_function("wasmtime_component_val_delete", None, c_void_p)
delete_host: Final = library_function("wasmtime_component_resource_host_delete", None, c_void_p)
