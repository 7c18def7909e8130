package config

// Bool is true or false where the default is true: an empty value is the default.
type Bool string

// The values of Bool.
const (
	True  Bool = "true"
	False Bool = "false"
)

func (Bool) words() []string { return []string{"true", "false"} }
