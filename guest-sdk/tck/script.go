// Package tck holds hosts and SDKs to the contract of package abi. A guest is given a
// script: at which hook to call which import with what. It tells, in its log, what each
// call returned and what came into the buffer; the runner compares that with a table, and
// with the mail that comes out at the other end.
//
//	runner ── script, in the configuration ──▶ guest ── imports ──▶ host
//	  ▲                                          │
//	  └──────── log lines, mail, verdicts ◀──────┘
//
// [Run] takes any host and any guest: the guest that [Guest] makes, which calls the imports
// as they are, or one written with an SDK, which follows the same script as far as the SDK
// can express it. A script is binary, so that a guest needs no parser:
//
//	config   {"script": "HEX"}
//	step     hook u8 │ flags u8 │ number u16 │ import u32 │ size u32 │ arguments, size octets
//	end      0xff
//
// in little endian. hook is 0 for mg1_init. import is the 32-bit FNV-1a of the import's name.
// Arguments stand in the order of the import's parameters, one for each of those that
// belong together: of i32 and i64 an i64, of what is passed as a pointer and a length its
// length as u32 and its octets, of a buffer its room as u32. A guest answers a step with the
// line
//
//	tck HEX      HEX of: number u16 │ status u16 │ result i64 │ the buffer, all of its room
//
// at level info. It fills buffers with 0xee before the call. status is 0, or 1 for
// an import that it does not know or cannot express. Two steps are no imports: "verdict" (a
// u64) is what the hook returns, "frame" returns the octets of the event frame, whose room
// is its one argument. Flag bit 0 says that arguments are the raw parameters, an i64 each,
// and that no answer is wanted: only the guest of this package knows it.
package tck

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"strings"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// script.go: scripts, and the answers of guests.

// Steps that are no imports.
const (
	StepVerdict = "verdict"
	StepFrame   = "frame"
)

// Room is the argument for a buffer: how large it is. At most MaxRoom.
type Room uint32

// MaxRoom is the largest buffer of a step.
const MaxRoom = 400

const (
	flagRaw     = 1
	flagUnasked = 1 // of a status: the guest does not know the import
	endOfScript = 0xff
	stepHead    = 12
	answerHead  = 12
	filler      = 0xee // what a buffer is filled with before the call
)

// id is an import's number in a script.
func id(name string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(name))
	return h.Sum32()
}

// Step is one call of an import, or what the runner asks for besides.
type Step struct {
	At     abi.Hook // 0: in mg1_init
	Import string
	// Args are int for i32 and i64, string for a pointer and a length, Room for a buffer.
	Args []any
}

// appendTo encodes the step as number n.
func (s Step) appendTo(b []byte, n int) []byte {
	var args []byte
	for _, a := range s.Args {
		switch a := a.(type) {
		case int:
			args = binary.LittleEndian.AppendUint64(args, uint64(a))
		case string:
			args = binary.LittleEndian.AppendUint32(args, uint32(len(a)))
			args = append(args, a...)
		case Room:
			args = binary.LittleEndian.AppendUint32(args, uint32(a))
		default:
			panic(fmt.Sprintf("tck: an argument of type %T", a))
		}
	}
	return appendStep(b, s.At, 0, n, id(s.Import), args)
}

func appendStep(b []byte, at abi.Hook, flags byte, n int, id uint32, args []byte) []byte {
	b = append(b, byte(at), flags)
	b = binary.LittleEndian.AppendUint16(b, uint16(n))
	b = binary.LittleEndian.AppendUint32(b, id)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(args)))
	return append(b, args...)
}

// RawStep is a call whose parameters are numbers as they are, pointers too. The guest does
// not tell what came of it.
type RawStep struct {
	At     abi.Hook
	Import string
	Params []int64 // as many as the import has
}

// RawConfig is the configuration of the guest that [Guest] makes for a script of raw steps.
func RawConfig(steps []RawStep) []byte {
	var script []byte
	for i, s := range steps {
		var args []byte
		for _, p := range s.Params {
			args = binary.LittleEndian.AppendUint64(args, uint64(p))
		}
		script = appendStep(script, s.At, flagRaw, i, id(s.Import), args)
	}
	return config(append(script, endOfScript))
}

// scriptConfig is the configuration for a script.
func scriptConfig(steps []Step) []byte {
	var script []byte
	for i, s := range steps {
		script = s.appendTo(script, i)
	}
	return config(append(script, endOfScript))
}

const (
	configHead = `{"script": "`
	configTail = `"}`
)

func config(script []byte) []byte {
	return []byte(configHead + hex.EncodeToString(script) + configTail)
}

// Answer is what a guest tells of a step.
type Answer struct {
	Step    int
	Unknown bool // it does not know the import, or its SDK cannot express the call
	Result  int64
	Buffer  string // all of it
}

const linePrefix = "tck "

// parseAnswer reads a line of the log; ok is false if it is no answer.
func parseAnswer(line string) (a Answer, ok bool) {
	text, ok := strings.CutPrefix(line, linePrefix)
	if !ok {
		return a, false
	}
	b, err := hex.DecodeString(text)
	if err != nil || len(b) < answerHead {
		return a, false
	}
	return Answer{
		Step:    int(binary.LittleEndian.Uint16(b)),
		Unknown: binary.LittleEndian.Uint16(b[2:])&flagUnasked != 0,
		Result:  int64(binary.LittleEndian.Uint64(b[4:])),
		Buffer:  string(b[answerHead:]),
	}, true
}

// kind is what an argument of a step is passed as.
type kind byte

const (
	number kind = iota // one parameter
	octets             // a pointer and a length
	buffer             // a pointer and room
)

// arg is an argument of an import and the number of its first parameter.
type arg struct {
	kind  kind
	param int
}

// argsOf puts parameters together that belong together, by their names: those of package
// abi's table are p, n and so on for octets that the guest gives, buf and cap or n for a
// buffer.
func argsOf(imp abi.Import) []arg {
	var args []arg
	for i := 0; i < len(imp.Params); i++ {
		p, next := imp.Params[i].Name, ""
		if i+1 < len(imp.Params) {
			next = imp.Params[i+1].Name
		}
		switch {
		case p == "buf":
			args = append(args, arg{buffer, i})
			i++
		case strings.HasSuffix(p, "p") && next == strings.TrimSuffix(p, "p")+"n":
			args = append(args, arg{octets, i})
			i++
		default:
			args = append(args, arg{number, i})
		}
	}
	return args
}
