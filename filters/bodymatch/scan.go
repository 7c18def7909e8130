package main

import (
	"bytes"
	"io"

	"github.com/penstock/penstock/guest-sdk/filter"
)

// scan.go: looking for texts in a body that is not in memory as a whole.
//
//	body   ├──────── window 1 ────────┤
//	                             ├──────── window 2 ────────┤
//	                             └ overlap: the longest text less one octet
//
// A text that crosses the border of a window lies in the next one as a whole.

// maxText is the longest text to look for, in octets.
const maxText = 1024

// windowSize is how much of a body is looked at at once.
const windowSize = 64 << 10

// scanBody marks the rules whose texts are in the first s.limit octets of the body. It
// ends early when nothing is left to find.
func (s scanner) scanBody(body *filter.Body, found []bool) error {
	overlap := s.longest() - 1
	window := make([]byte, 0, windowSize+overlap)
	src := io.LimitReader(body, s.limit)
	for {
		n, err := io.ReadFull(src, window[len(window):cap(window)])
		window = window[:len(window)+n]
		s.mark(window, found)
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF || s.done(found):
			return nil
		case err != nil:
			return err
		}
		window = append(window[:0], window[max(0, len(window)-overlap):]...)
	}
}

// longest returns the length of the longest text, at least 1.
func (s scanner) longest() int {
	n := 1
	for _, r := range s.rules {
		for _, t := range r.texts {
			n = max(n, len(t))
		}
	}
	return n
}

// mark looks at one window. It is folded once for all rules that want it.
func (s scanner) mark(window []byte, found []bool) {
	var folded []byte
	for i, r := range s.rules {
		if found[i] || !r.body {
			continue
		}
		text := window
		if r.fold {
			if folded == nil {
				folded = foldASCII(bytes.Clone(window))
			}
			text = folded
		}
		for _, t := range r.texts {
			if bytes.Contains(text, []byte(t)) {
				found[i] = true
				break
			}
		}
	}
}

func (s scanner) done(found []bool) bool {
	for i, r := range s.rules {
		if r.body && !found[i] {
			return false
		}
	}
	return true
}

// foldASCII makes the letters of ASCII small in place. Others stay: what they are depends
// on a charset, and folding must not change lengths.
func foldASCII(b []byte) []byte {
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return b
}
