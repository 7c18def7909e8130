package wasmhost

import (
	"context"
	"time"
	"unsafe"

	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
)

// LimitProcess is limitProcess, for a test that runs in a process of its own.
func LimitProcess(cpu time.Duration) { _ = limitProcess(cpu) }

// RaceDetector tells whether this is a test with it.
const RaceDetector = raceDetector

// Outside has the guest of a session, during a call of it to its Host, wait for f.
func Outside(in policy.Instance, f func(ctx context.Context)) { in.(*session).outside(f) }

// NoMappings has no image mapped any more: memories are copies.
func (r *Runtime) NoMappings() { r.mappings = 0 }

// Footprint is what a session keeps between two calls, in octets: itself and its Env.
func Footprint() uintptr { return unsafe.Sizeof(session{}) + unsafe.Sizeof(guest.Env{}) }
