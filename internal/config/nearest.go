package config

// maxNearest is the longest word that is compared, in bytes: no key is near to a
// longer one, and the comparison is quadratic.
const maxNearest = 64

// nearest returns the candidate that word was most likely meant to be. There is
// none when more than a third of the word, and more than one letter, would have to
// change.
func nearest(word string, candidates []string) (string, bool) {
	if word == "" || len(word) > maxNearest {
		return "", false
	}
	best, found := max(1, (len(word)+1)/3), ""
	for _, c := range candidates {
		if len(c)-len(word) > best || len(word)-len(c) > best {
			continue
		}
		if d := distance(word, c); d < best || d == best && found == "" {
			best, found = d, c
		}
	}
	return found, found != ""
}

// distance counts the letters to insert, delete, replace or swap with their
// neighbour to make b from a.
func distance(a, b string) int {
	var before []int
	last := make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := last[j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			row[j] = min(change, last[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
