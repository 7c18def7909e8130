;; mg1_hook takes numbers of another type, which the host would misread. It must not load.
(module
  (func (export "mg1_hook") (param f64 f64) (result f64) (f64.const 0))
  (memory (export "memory") 1)
  (func (export "mg1_init") (param i32) (result i64) (i64.const 0x100000001000)))
