package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// size.go reads amounts: bytes, durations and counts. Their errors carry no
// package name, since they become the text of a Problem, which names the key.

// Size is a number of bytes. In YAML it is written as a whole number with one of
// the units B, KB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB (powers of 1024),
// or without a unit for bytes.
type Size int64

// units of Size, the largest first so that String finds the shortest form. K and M
// alone are not among them: half of the world reads them as 1000.
func units() []struct {
	name  string
	bytes int64
} {
	return []struct {
		name  string
		bytes int64
	}{
		{"TiB", 1 << 40}, {"TB", 1e12},
		{"GiB", 1 << 30}, {"GB", 1e9},
		{"MiB", 1 << 20}, {"MB", 1e6},
		{"KiB", 1 << 10}, {"KB", 1e3},
		{"B", 1},
	}
}

// UnmarshalText reads a size such as 50MiB. Negative sizes and fractions are errors.
func (s *Size) UnmarshalText(text []byte) error {
	t := strings.TrimSpace(string(text))
	digits := strings.TrimRight(t, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	factor, ok := unitBytes(t[len(digits):])
	n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 63)
	switch {
	case errors.Is(err, strconv.ErrRange) || err == nil && ok && int64(n) > math.MaxInt64/factor:
		return fmt.Errorf("%s is too large", quote(t))
	case err != nil || !ok:
		return fmt.Errorf("%s is not a size: write a whole number with B, KB, MB, GB, KiB, MiB or GiB, such as 50MiB", quote(t))
	}
	*s = Size(int64(n) * factor)
	return nil
}

func unitBytes(name string) (int64, bool) {
	if name == "" {
		return 1, true
	}
	for _, u := range units() {
		if strings.EqualFold(u.name, name) {
			return u.bytes, true
		}
	}
	return 0, false
}

// String returns the size in the largest unit that needs no fraction: 50MiB. It is
// read back to the same size.
func (s Size) String() string {
	if s == 0 {
		return "0"
	}
	best := strconv.FormatInt(int64(s), 10)
	for _, u := range units() {
		if int64(s)%u.bytes != 0 {
			continue
		}
		if t := strconv.FormatInt(int64(s)/u.bytes, 10) + u.name; len(t) <= len(best) || u.bytes == 1 {
			return t
		}
	}
	return best
}

func (Size) describe() string { return "size" }

// ParseDuration reads a duration as the configuration writes it: what time.ParseDuration reads,
// and days in front: 1d12h. Days are what operators think in for anything long. A number
// without a unit is an error, as nobody can tell seconds from minutes.
func ParseDuration(text string) (time.Duration, error) {
	t := strings.TrimSpace(text)
	days, rest, hasDays := strings.Cut(t, "d")
	var d time.Duration
	var err error
	if !hasDays {
		rest = t
	} else {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 16) // 65535 days fit in a Duration
		d = time.Duration(n) * 24 * time.Hour
	}
	if err == nil && rest != "" {
		var r time.Duration
		r, err = time.ParseDuration(rest)
		d += r
	}
	if err != nil || t == "" || d < 0 || hasDays && strings.HasPrefix(rest, "-") {
		return 0, fmt.Errorf("%s is not a duration: write a number with its unit, such as 30s, 5m, 1h30m or 2d", quote(t))
	}
	return d, nil
}

// maxCount bounds every count, so that sums of them cannot overflow an int
// anywhere.
const maxCount = 1_000_000_000

// parseCount reads a whole number that is not negative.
func parseCount(text string) (int, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 63)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return 0, fmt.Errorf("%s is not a whole number", quote(text))
	}
	if err != nil || n > maxCount {
		return 0, fmt.Errorf("%s is too large: at most %d", quote(text), maxCount)
	}
	return int(n), nil
}
