// Package meter reads a WebAssembly module that a stranger wrote and rewrites it so that
// it can be stopped, bounded and set back. It knows the binary format and nothing that
// runs it.
//
// [Read] takes the binary format as far apart as it must be trusted: form, limits, and
// every index. That each index is checked before anything is rewritten is what makes
// rewriting safe: it adds a local, globals, functions and exports, and an index that
// was one too large would then mean one of them. What types the operands of an
// instruction have is left to the compiler, which sees the rewritten module; what is
// inserted leaves the operand stack as it found it, so that a module is valid after
// it if it was before, and only then.
//
// # Fuel
//
// Every function that has a loop, or that calls what has one, keeps fuel:
//
//	function entry   fuel -= cost of the code outside of loops;  depth += frame
//	                 if fuel < 0 or depth > MaxDepth: call the host
//	loop header      fuel -= cost of one turn, inner loops left out
//	                 if fuel < 0: call the host
//	long code        the same every maxStretch, for what is behind
//	bulk operation   fuel -= length / 64, before it runs;  if fuel < 0: call the host
//	function exit    depth -= frame
//
// The host (import [TickModule].[TickName]) answers with new fuel, or panics, which is a
// trap. So fuel is no measure of time: it says when the clock is looked at. It is in the
// global [FuelExport], so that a function of the host may lower it for the work it did; a
// loop without calls has a copy in a local, and writes both.
//
// A function is light if it has no loop, calls only light functions, and costs little all
// in all. It is left as it is, and whoever calls it pays for it. Hence no cycle of the
// control flow, be it of loops or of calls, is without a check: a light function cannot be
// on one, and each other function has a check at its entry, each loop one at its header.
//
// # Stack
//
// Frames are weighed before the compiler makes them, so the weight is an estimate: of real
// code about four times what it takes, of the worst that was found a twelfth of it. Functions
// that count on no weight (light ones) stay below a bound of their own.
//
// # References
//
// Reference types are taken. Two of their instructions would allocate in the host without an
// end: ref.func, once each time it runs, which becomes a load from a table of ours that holds
// what code refers to; and table.grow, for which tables get a maximum. Guests of clang and
// rustc say that they use reference types when all they do is to call through a table.
// Threads, tail calls, exceptions, memories of 64 bits and more than one memory are not in
// WebAssembly 2.0 and are refused.
//
// # Tables
//
// A table that code does nothing with but call what is in it, and nobody else sees, is
// emptied: calls through it become calls of functions of ours that know what was in it.
// So an instance has no more of it than two entries, and not an object of the host for each
// function of the guest.
//
// # State
//
// What a guest changes must be found again to be set back. Mutable globals get exports.
// Active data segments and the start function are taken out: the host does their work, once.
package meter

import "github.com/penstock/penstock/guest-sdk/abi"

// Names that the rewritten module has and a guest must not have.
const (
	// FuelExport is a mutable i64 global: the fuel that is left. Set it before a call.
	FuelExport = abi.ReservedPrefix + "_fuel"
	// DepthExport is a mutable i32 global: octets of stack in use. It is 0 between calls
	// that did not trap.
	DepthExport = abi.ReservedPrefix + "_depth"
	// TickModule and TickName are the import (func (param i64) (result i64)), which takes
	// the fuel, below 0, and returns the new. It is called with NoStack if the stack is
	// used up; then it must not return (if it does, the guest traps).
	TickModule = abi.ReservedPrefix
	// TickName is the name in TickModule.
	TickName = "tick"

	startExport  = abi.ReservedPrefix + "_start"
	globalExport = abi.ReservedPrefix + "_global_"
	tickFunction = abi.ReservedPrefix + "_tick" // in stack traces
)

const (
	// NoStack is what the host is called with when the stack is used up.
	NoStack = -1 << 63
	// MaxDepth is how many octets of stack a guest may use.
	MaxDepth = 512 << 10
)

// MaxModule is the largest module that Read takes, in octets.
const MaxModule = 16 << 20

// Outside is an import that is not a function.
type Outside struct {
	Kind string // "table", "memory" or "global"
	Name string // "module.name"
}

// Global is a mutable global of the guest.
type Global struct {
	Export string // its name in the rewritten module
	Type   byte   // 0x7f i32, 0x7e i64, 0x7d f32, 0x7c f64
}

// Segment is data that memory begins with.
type Segment struct {
	Offset uint32
	Bytes  []byte
}

func (s Segment) end() uint64 { return uint64(s.Offset) + uint64(len(s.Bytes)) }

// Rewritten is a module that was rewritten.
type Rewritten struct {
	// Wasm is the binary to compile.
	Wasm []byte
	// Globals are the mutable globals that the guest defines, those of 128 bits and
	// references left out: for them Resettable is false.
	Globals []Global
	// Data is what memory begins with, in the order in which it must be written; the one
	// who writes it checks the bounds, which is an error of the guest's. In the binary
	// these segments are empty and passive, as dropped ones are, or absent if no
	// instruction speaks of them.
	Data []Segment
	// Start is the export of the start function, empty if there is none. Call it after
	// Data is written and before anything else.
	Start string
	// MemoryMin is the size that the guest's memory begins with, in pages of 64 KiB.
	MemoryMin uint32
	// Resettable tells whether memory and Globals are all that a guest can change. It is
	// false if code changes tables, drops segments or reads them, or if a mutable global
	// is no number of at most 64 bits: then only a new instance is as good as new.
	Resettable bool
}
