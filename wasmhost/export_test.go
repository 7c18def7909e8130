package wasmhost

import "time"

// LimitProcess is limitProcess, for a test that runs in a process of its own.
func LimitProcess(cpu time.Duration) { _ = limitProcess(cpu) }

// RaceDetector tells whether this is a test with it.
const RaceDetector = raceDetector
