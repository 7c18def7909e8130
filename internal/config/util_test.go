package config

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// lookUp returns a value of the configuration as text: the names of Go fields, the
// names of map entries (with ! for a dot) and the indexes of lists, with dots between.
func lookUp(c *Config, path string) string {
	v := reflect.ValueOf(c).Elem()
	for word := range strings.SplitSeq(path, ".") {
		switch v.Kind() {
		case reflect.Map:
			v = v.MapIndex(reflect.ValueOf(strings.ReplaceAll(word, "!", ".")))
		case reflect.Slice:
			i, _ := strconv.Atoi(word)
			v = v.Index(i)
		default:
			v = v.FieldByName(word)
		}
		if !v.IsValid() {
			return "nothing at " + word
		}
	}
	return fmt.Sprint(v.Interface())
}
