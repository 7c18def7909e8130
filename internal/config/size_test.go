package config

import (
	"math"
	"testing"
	"time"
)

func TestSize(t *testing.T) {
	for _, c := range []struct {
		in   string
		want int64  // -1: an error
		out  string // how it is printed
	}{
		{"0", 0, "0"},
		{"1", 1, "1B"},
		{"512B", 512, "512B"},
		{"1000", 1000, "1KB"},
		{"1024", 1024, "1KiB"},
		{"10KB", 10_000, "10KB"},
		{"50MiB", 50 << 20, "50MiB"},
		{"50 mib", 50 << 20, "50MiB"}, // a space and any case
		{" 3GB ", 3e9, "3GB"},
		{"1TiB", 1 << 40, "1TiB"},
		{"1024KiB", 1 << 20, "1MiB"},
		{"1024000", 1_024_000, "1000KiB"}, // as short as 1024KB, and the first found
		{"9223372036854775807", math.MaxInt64, "9223372036854775807B"},
		{"8388607TiB", 8388607 << 40, "8388607TiB"},
		{"8388608TiB", -1, ""},          // one more than fits
		{"9223372036854775808", -1, ""}, // the same
		{"99999999999999999999KiB", -1, ""},
		{"50M", -1, ""}, // MB or MiB?
		{"1.5MiB", -1, ""},
		{"-1", -1, ""},
		{"+1", -1, ""},
		{"MiB", -1, ""},
		{"1_000", -1, ""},
		{"0x10", -1, ""},
		{"1 2", -1, ""},
		{"", -1, ""},
	} {
		var s Size
		err := s.UnmarshalText([]byte(c.in))
		if (err != nil) != (c.want < 0) || err == nil && int64(s) != c.want {
			t.Errorf("%q: got %d, %v, want %d", c.in, s, err, c.want)
			continue
		}
		if err == nil && s.String() != c.out {
			t.Errorf("%q: printed as %s, want %s", c.in, s, c.out)
		}
	}
}

func FuzzSizeRoundTrip(f *testing.F) {
	f.Add("50MiB")
	f.Add("1 kb")
	f.Fuzz(func(t *testing.T, in string) {
		var s, again Size
		if s.UnmarshalText([]byte(in)) != nil {
			return
		}
		if err := again.UnmarshalText([]byte(s.String())); err != nil || again != s || s < 0 {
			t.Errorf("%q: got %d, printed as %q, read back as %d, %v", in, s, s.String(), again, err)
		}
	})
}

func TestParseDuration(t *testing.T) {
	for _, c := range []struct {
		in   string
		want time.Duration // -1: an error
	}{
		{"0", 0},
		{"30s", 30 * time.Second},
		{"1h30m", 90 * time.Minute},
		{"1.5h", 90 * time.Minute},
		{"250ms", 250 * time.Millisecond},
		{"5d", 120 * time.Hour},
		{"1d12h", 36 * time.Hour},
		{" 1m ", time.Minute},
		{"65535d", 65535 * 24 * time.Hour},
		{"30", -1},             // seconds? minutes?
		{"-5m", -1},            // no wait is negative
		{"1d-5m", -1},          // nor is a part of one
		{"-1d", -1},            //
		{"65536d", -1},         // would not fit
		{"65535d2562047h", -1}, // overflows in the sum
		{"d", -1},
		{"1.5d", -1},
		{"1h1d", -1},
		{"1w", -1},
		{"5 m", -1},
		{"", -1},
	} {
		got, err := ParseDuration(c.in)
		if (err != nil) != (c.want < 0) || err == nil && got != c.want {
			t.Errorf("%q: got %v, %v, want %v", c.in, got, err, c.want)
		}
	}
}

func TestParseCount(t *testing.T) {
	for in, want := range map[string]int{
		"0": 0, "12": 12, " 7 ": 7, "1000000000": 1e9,
		"1000000001": -1, "99999999999999999999": -1, "-1": -1, "1.0": -1, "1e3": -1, "ten": -1, "": -1,
	} {
		if got, err := parseCount(in); (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("%q: got %d, %v, want %d", in, got, err, want)
		}
	}
}
