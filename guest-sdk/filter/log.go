package filter

import (
	"strconv"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// Level is the level of a log line.
type Level = abi.Level

// The levels. Error is for what an operator must act on.
const (
	LevelDebug = abi.LevelDebug
	LevelInfo  = abi.LevelInfo
	LevelWarn  = abi.LevelWarn
	LevelError = abi.LevelError
)

// logLine writes text and key=value pairs as one line. Values that could be taken for
// something else are quoted: what comes from a client must not forge a pair.
func logLine(h host, level Level, text string, pairs []string) {
	if h.LogEnabled(int32(level)) != 1 {
		return
	}
	line := []byte(text)
	for i := 0; i < len(pairs); i += 2 {
		line = append(append(append(line, ' '), pairs[i]...), '=')
		if i+1 < len(pairs) {
			line = appendValue(line, pairs[i+1])
		}
	}
	h.Log(int32(level), line[:min(len(line), abi.MaxLogLine)])
}

func appendValue(b []byte, s string) []byte {
	plain := s != ""
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '=' || c == '\\' {
			plain = false
		}
	}
	if plain {
		return append(b, s...)
	}
	return strconv.AppendQuote(b, s)
}
